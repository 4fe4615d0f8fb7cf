"""Two files of samples, of one evaluation each: what changed from the first to the second, question by question."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import strict_json
from ..disk import read_file
from ..errors import UsageError, shown, text_of
from ..study.figures import Difference, Share, difference, share
from .evaluate import KINDS
from .options import as_path

_log = logging.getLogger(__name__)

_SHOWN = 10  # questions of a kind, by name


@dataclass(frozen=True)
class Sample:
    """An answer as a samples file keeps it, as far as it is compared."""

    question: str
    image: bool
    answers: tuple[str, ...]
    score: float


@dataclass(frozen=True)
class Run:
    """The samples of one *checkpoint* in a samples file; *conversation* is how it was asked."""

    checkpoint: str
    fingerprint: str
    conversation: str
    samples: tuple[Sample, ...]

    def accuracy(self) -> Share | None:
        """The share of right answers."""
        return share([sample.score for sample in self.samples])

    def to_json(self) -> dict[str, Any]:
        """What was asked, how, and how many answers are right."""
        accuracy = self.accuracy()
        return {
            "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint,
            "conversation": self.conversation,
            "accuracy": None if accuracy is None else accuracy.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same questions, in the same order."""

    first: Run
    second: Run

    def difference(self, *, image: bool | None = None) -> Difference | None:
        """The paired difference: of all questions, or of those with or without an *image*."""
        pairs = [(one.score, other.score) for one, other in self._pairs() if image is None or one.image == image]
        return difference(*zip(*pairs, strict=True)) if pairs else None

    def _pairs(self) -> Sequence[tuple[Sample, Sample]]:
        return list(zip(self.first.samples, self.second.samples, strict=True))

    @property
    def lost(self) -> tuple[str, ...]:
        """The questions whose answers are worth less in the second run."""
        return tuple(one.question for one, other in self._pairs() if other.score < one.score)

    @property
    def gained(self) -> tuple[str, ...]:
        """The questions whose answers are worth more in the second run."""
        return tuple(one.question for one, other in self._pairs() if other.score > one.score)

    def to_json(self) -> dict[str, Any]:
        """The figures, and the questions that changed, for a script to read."""
        changes = ((kind, self.difference(image=image)) for kind, image in KINDS)
        return {
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "changed": {kind: change.to_json() for kind, change in changes if change is not None},
            "lost_questions": list(self.lost),
            "gained_questions": list(self.gained),
        }

    def to_text(self) -> str:
        """Both accuracies, what changed, and the first questions that did, for a person to read."""
        count = len(self.first.samples)
        lines = [f"{run.checkpoint}: {run.accuracy()}, {count} questions" for run in (self.first, self.second)]
        changes = ((kind, self.difference(image=image)) for kind, image in KINDS)
        lines += ["", *(f"{kind:<9} {change}" for kind, change in changes if change is not None)]
        for word, names in (("lost", self.lost), ("gained", self.gained)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"{word:<9} questions {', '.join(names[:_SHOWN])}{more}")
        return text_of(lines)


def compare(run_a: Path | str, run_b: Path | str, *, checkpoint: str | None = None) -> Comparison:
    """Compare the samples file *run_b* with *run_a*, paired by the names of their questions.

    *checkpoint* names the one to take of a file that holds several.

    Raises:
        UsageError: a file holds no samples, or several checkpoints and *checkpoint* names none; or they are over other
            questions.
        StorageError: a file cannot be read.
    """
    paths = as_path(run_a), as_path(run_b)
    files = [_read(path) for path in paths]
    if checkpoint is not None and all(len(runs) == 1 for runs in files):
        raise UsageError("`checkpoint` is about a file that holds several, and here is none; leave it out")
    first, second = (_chosen(runs, path, checkpoint) for runs, path in zip(files, paths, strict=True))
    by_name = {sample.question: sample for sample in second.samples}
    for sample in first.samples:
        other = by_name.get(sample.question)
        if other is None or (other.image, other.answers) != (sample.image, sample.answers):
            what = "lacks" if other is None else "asks something else in"
            raise UsageError(f"{paths[1]}: {what} question {shown(sample.question)} of {paths[0]}; {_SAME_QUESTIONS}")
    if len(second.samples) > len(first.samples):
        extra = next(iter(by_name.keys() - {sample.question for sample in first.samples}))
        raise UsageError(f"{paths[0]}: lacks question {shown(extra)} of {paths[1]}; {_SAME_QUESTIONS}")
    if first.conversation != second.conversation:
        _log.warning(
            "%s was asked by %s and %s by %s: the prompt may be what makes the difference",
            *(paths[0], shown(first.conversation), paths[1], shown(second.conversation)),
        )
    in_order = tuple(by_name[sample.question] for sample in first.samples)
    return Comparison(first, Run(second.checkpoint, second.fingerprint, second.conversation, in_order))


_SAME_QUESTIONS = "compare runs over the same questions"


def _chosen(runs: dict[str, Run], path: Path, checkpoint: str | None) -> Run:
    if len(runs) == 1:
        return next(iter(runs.values()))
    if checkpoint not in runs:
        raise UsageError(f"{path}: holds {', '.join(map(shown, runs))}; say with `checkpoint` which one is compared")
    return runs[checkpoint]


def _read(path: Path) -> dict[str, Run]:
    """The runs of the samples file *path*, by their checkpoints."""
    found: dict[str, dict[str, Sample]] = {}
    said: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(read_file(path, UsageError, None).split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            entry = strict_json.parse(line.decode())
            name, question, score = str(entry["checkpoint"]), str(entry["question_id"]), float(entry["score"])
            sample = Sample(question, bool(entry["image"]), tuple(map(str, entry["answers"])), score)
            if not 0 <= score <= 1:
                raise ValueError("no share")
            said.setdefault(name, (str(entry["fingerprint"]), str(entry["conversation"])))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UsageError(
                f"{path}: line {number}: is no answer of a samples file; give what evaluate keeps with `samples`"
            ) from error
        if question in found.setdefault(name, {}):
            raise UsageError(
                f"{path}: line {number}: has question {shown(question)} again; one answer each is compared"
            )
        found[name][question] = sample
    if not found:
        raise UsageError(f"{path}: holds no answers; give what evaluate keeps with `samples`")
    return {name: Run(name, *said[name], tuple(samples.values())) for name, samples in found.items()}
