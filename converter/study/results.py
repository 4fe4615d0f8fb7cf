"""The results directory of a study: what every point answered, and what was measured for all of them.

::

    study.json               the study: its points and all that decides their answers
    points/NAME.json         what a point answered, or why it failed; each is written whole, and on the disk
    outside/NAME.json        what an outside evaluator said of a point; its own files are in outside/NAME
    scores-*.json            the heads' scores by each metric, named by the hash of what they were measured on
    statistics-*/            the moments that compensations are fitted to, likewise
    summary.csv, .json, .md  and plots: made again from the above at any time
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import strict_json
from ..disk import UNFINISHED, read_file, sync, write_output
from ..errors import StorageError, UsageError, printable, shown
from .evaluation import Answer, Evaluation, Speed
from .points import Grid, Point
from .questions import Question

STUDY_FORMAT, RESULT_FORMAT, SCORE_FORMAT = "s4convert-study/1", "s4convert-point/1", "s4convert-score/1"
STUDY_FILE = "study.json"
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class Measured:
    """What was measured of a point beside its answers, to prove that it was in effect, and how well it was fitted.

    *change* is that of the logits of a few questions, ||after - before|| / ||before||; *silent_heads* were counted in
    the weights. *error* is E, the mean squared change of the attention output, summed over layers, and *error_left* its
    share of the E of no compensation, on held-out tokens if there are any; both None without calibration data. *speed*
    is how many times as fast as the unpruned model it is on the same input, each timed right after the other. *notes*
    are what the fits had to say.
    """

    change: float
    silent_heads: int
    error: float | None
    error_left: float | None
    speed: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a point's file holds: its *evaluation* and, but for the baseline, what was *measured*; or the *failure*."""

    evaluation: Evaluation | None
    measured: Measured | None = None
    failure: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as a point's file has it."""
        found = self.evaluation
        content: dict[str, Any] = {"failure": self.failure}
        if found is not None:
            content |= {
                "answers": [one.to_json() | {"options": one.question.options} for one in found.answers],
                "text_loss": found.text_loss,
                "text_tokens": found.text_tokens,
                "speed": None if found.speed is None else asdict(found.speed),
                "measured": None if self.measured is None else asdict(self.measured),
            }
        return content

    @staticmethod
    def of_json(content: Mapping[str, Any]) -> Result:
        """What :meth:`to_json` made; KeyError or TypeError where it did not."""
        if content["failure"] is not None:
            return Result(None, None, str(content["failure"]))
        speed, measured = content["speed"], content["measured"]
        evaluation = Evaluation(
            tuple(_answer(line) for line in content["answers"]),
            content["text_loss"],
            content["text_tokens"],
            None if speed is None else Speed(**speed | {"rates": tuple(speed["rates"])}),
        )
        return Result(evaluation, None if measured is None else _measured(measured))


def _measured(content: Mapping[str, Any]) -> Measured:
    return Measured(**{**content, "notes": tuple(content["notes"])})


def _answer(line: Mapping[str, Any]) -> Answer:
    image = Path() if line["image"] else None  # only whether there is one
    question = Question(line["question_id"], "", image, tuple(line["answers"]), line["options"], "")
    said = {name: line[name] for name in ("text", "choice", "score", "loss", "tokens", "cut")}
    return Answer(question, **said)


@dataclass(frozen=True)
class Score:
    """What an outside evaluator said of a point: its *score*, or the *failure*."""

    score: float | None
    failure: str | None = None


@dataclass(frozen=True)
class Results:
    """A results *directory*."""

    directory: Path

    @property
    def scratch(self) -> Path:
        """What is kept only while a point is measured."""
        return self.directory / ".scratch"

    def result(self, point: str) -> Result | None:
        """The result of the point of that name, or None where it has none yet.

        Raises:
            UsageError: its file is not one.
            StorageError: it cannot be read.
        """
        path = self._file(point)
        if not path.exists():
            return None
        content = _parsed(path, RESULT_FORMAT)
        try:
            return Result.of_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{path}: is malformed ({shown(error)}); remove it, and the point is run again") from error

    def keep(self, point: Point, result: Result) -> None:
        """Write the result of *point*, and bring it to the disk; StorageError where the disk refuses."""
        content = {"format": RESULT_FORMAT, "point": point.name, "decided_by": point.decided_by} | result.to_json()
        _write(self._file(point.name), content)

    def score(self, name: str) -> Score | None:
        """What an outside evaluator said, see :meth:`~s4convert.study.outside.Evaluator.name`; None if not yet."""
        path = self._outside(name)
        if not path.exists():
            return None
        content = _parsed(path, SCORE_FORMAT)
        return Score(content.get("score"), content.get("failure"))

    def keep_score(self, name: str, point: str, score: Score) -> None:
        """Write what an outside evaluator said of *point*, and bring it to the disk."""
        path = self._outside(name)
        path.parent.mkdir(exist_ok=True)
        _write(path, {"format": SCORE_FORMAT, "point": point} | asdict(score))

    def keep_study(self, grid: Grid, about: Mapping[str, Any]) -> None:
        """Write the study: its *grid*, and what is said *about* all of its points."""
        _write(self.directory / STUDY_FILE, {"format": STUDY_FORMAT, **about} | grid.to_json())

    def study(self) -> Mapping[str, Any]:
        """What :meth:`keep_study` wrote last; UsageError where there is none."""
        path = self.directory / STUDY_FILE
        if not path.is_file():
            raise UsageError(f"{self.directory}: holds no {STUDY_FILE}; give the directory of a sweep")
        return _parsed(path, STUDY_FORMAT)

    def made_once(self, name: str, make: Callable[[Path], object]) -> Path:
        """What stands at *name*, which *make* makes at the path it is given, if it is not there yet."""
        path = self.directory / name
        if not path.exists():
            unfinished = self.scratch / name
            make(unfinished)
            try:
                unfinished.rename(path)
                sync(self.directory)
            except OSError as error:
                raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path

    def _outside(self, name: str) -> Path:
        return self.directory / "outside" / f"{name}.json"

    def _file(self, point: str) -> Path:
        return self.directory / "points" / f"{point}.json"


@contextmanager
def open_results(directory: Path) -> Iterator[Results]:
    """The results in *directory*, which is made if it is not there, held against other sweeps.

    Raises:
        UsageError: it is no directory, or something else than results is in it.
        StorageError: another sweep is writing there, or it cannot be made.
    """
    results = Results(directory)
    try:
        if directory.exists() and not directory.is_dir():
            raise UsageError(f"{directory}: is no directory; choose another for the results")
        directory.mkdir(exist_ok=True)
        names = {path.name for path in directory.iterdir()}
        if names and not names & {STUDY_FILE, LOCK_FILE}:
            raise UsageError(f"{directory}: holds other files than results of a sweep; choose another directory")
        lock = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _take(lock, directory)  # the file stays, so nobody can lock another in its place
            for folder in (directory, directory / "points", directory / "outside"):
                for left in folder.glob(f"{UNFINISHED}*"):  # of a sweep that was killed
                    left.unlink(missing_ok=True)
            _clear(results.scratch)
            for folder in (results.scratch, directory / "points"):
                folder.mkdir(exist_ok=True)
            sync(directory.absolute().parent)
            try:
                yield results
            finally:
                _clear(results.scratch)
        finally:
            os.close(lock)
    except OSError as error:
        raise StorageError(f"{error.filename or directory}: {error.strerror or error}") from error


def _take(lock: int, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"{directory}: another sweep is writing there; wait for that one") from error


def _clear(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def _parsed(path: Path, expected: str) -> dict[str, Any]:
    try:
        content = strict_json.parse(read_file(path, UsageError, None))
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON ({printable(str(error))}); remove it, and it is made again") from error
    if not isinstance(content, dict) or content.get("format") != expected:
        raise UsageError(f"{path}: is not of format {expected!r}; choose another directory")
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_output(path, json.dumps(content, indent=1, allow_nan=False) + "\n", force=True)
