"""Outside evaluators: a command that scores a checkpoint on the disk, as it is, and where its score is found."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import strict_json
from ..disk import read_file
from ..errors import EvaluatorError, StorageError, UsageError, shown
from .points import NAME_DIGITS

CHECKPOINT, OUT = "{checkpoint}", "{out}"
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Evaluator:
    """A *command* with ``{checkpoint}`` in it, and ``{out}``, a directory of its own for what it writes.

    Its score is the number at *score_json*, ``FILE:KEY/KEY`` with a file below ``{out}`` (``*`` stands for any name),
    or the last that *score_pattern*, an expression with one group, finds in what it prints.

    Raises:
        UsageError: the command or the place of its score is malformed.
    """

    command: str
    score_json: str | None = None
    score_pattern: str | None = None

    def __post_init__(self) -> None:
        if (self.score_json is None) == (self.score_pattern is None):
            raise UsageError("say where the score of `eval_command` is: with `score_json`, or with `score_pattern`")
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UsageError(
                f"`eval_command` {shown(self.command)} is no command ({error}); mend its quotes"
            ) from error
        if not any(CHECKPOINT in word for word in words):
            raise UsageError(f"`eval_command` has no {CHECKPOINT} in it; put it where the path of the model goes")
        if self.score_json is not None and not all(self.score_json.partition(":")):
            raise UsageError(f"`score_json` {shown(self.score_json)}: write it as FILE:KEY, with keys apart by /")
        if self.score_pattern is not None:
            try:
                groups = re.compile(self.score_pattern).groups
            except re.error as error:
                raise UsageError(f"`score_pattern` {shown(self.score_pattern)}: {error}; mend it") from error
            if groups != 1:
                raise UsageError(f"`score_pattern` has {groups} groups; put one around the score")

    def name(self, point: str) -> str:
        """What a score of *point* by this evaluator is kept as."""
        content = json.dumps([point, asdict(self)])
        return hashlib.sha256(content.encode()).hexdigest()[:NAME_DIGITS]

    def score(self, checkpoint: Path, out: Path) -> float:
        """Run the command on *checkpoint*; it may write into the directory *out*, where what it prints is kept.

        Raises:
            EvaluatorError: the command failed, or its score is not found.
            StorageError: *out* cannot be written to.
        """
        places = {CHECKPOINT: str(checkpoint.absolute()), OUT: str(out.absolute())}
        words = [re.sub(r"\{checkpoint\}|\{out\}", lambda m: places[m[0]], word) for word in shlex.split(self.command)]
        log = out / LOG_FILE
        try:
            out.mkdir(parents=True, exist_ok=True)
            file = log.open("wb")
        except OSError as error:
            raise StorageError(f"{error.filename or out}: cannot be written: {error.strerror}") from error
        with file:
            try:
                done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False)
            except OSError as error:
                raise EvaluatorError(f"`eval_command`: {words[0]} cannot be run: {error.strerror}") from error
        if done.returncode:
            raise EvaluatorError(f"`eval_command` ended with exit code {done.returncode}; see {log}")
        if self.score_pattern is not None:
            found = re.findall(self.score_pattern, log.read_text(encoding="utf-8", errors="replace"))
            return self._number(found[-1] if found else None, log)
        return self._number(*self._in_json(out))

    def _in_json(self, out: Path) -> tuple[Any, Path]:
        assert self.score_json is not None
        pattern, _, keys = self.score_json.partition(":")
        files = sorted(out.glob(pattern))
        if len(files) != 1:
            raise EvaluatorError(
                f"{out}: {len(files)} files are called {pattern}, and one was to be; mend `score_json`"
            )
        try:
            value = strict_json.parse(read_file(files[0], EvaluatorError))
            for key in keys.split("/"):
                value = value[int(key) if isinstance(value, list) else key]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise EvaluatorError(f"{files[0]}: has nothing at {keys} ({shown(error)}); mend `score_json`") from error
        return value, files[0]

    def _number(self, value: Any, where: Path) -> float:
        try:
            if isinstance(value, str | int | float) and not isinstance(value, bool):
                return float(value)
        except ValueError:
            pass
        raise EvaluatorError(f"{where}: the score is {shown(value)}, which is no number; mend where it is looked for")
