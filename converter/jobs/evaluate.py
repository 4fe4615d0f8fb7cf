"""What is left of a model: questions put to one checkpoint or more, and what changed from the first to the others."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibration.samples import Sample, read_texts
from ..checkpoint import Checkpoint
from ..choices import BATCH_SIZE, MAX_NEW_TOKENS
from ..disk import check_output, write_output
from ..errors import UsageError, text_of
from ..model.decoder import check_device
from ..model.resident import ResidentModel
from ..sources import locate_tower, open_checkpoint, original_at_hand
from ..study.evaluation import Evaluation, Tasks, evaluate_model, prepare
from ..study.prompts import Prompts, prompts_of
from ..study.questions import Question, read_questions
from .options import Options, as_path, options_of

_log = logging.getLogger(__name__)

MOST_LETTERS = 200  # of an answer that is shown beside another
KINDS = (("accuracy", None), ("image", True), ("text", False))


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(Options):
    """What is asked, and how.

    *questions* is a file of docs/evaluate.md's formats, with *images*, the directory of its images; of ScienceQA's own
    files, *split* names the questions. *text* is a file of plain text, whose perplexity is measured. The first
    *num_samples* (all) of each are taken.

    *conversation* is the prompt that the model was trained with, where its files do not say it. *vision_tower* is the
    tower of an original LLaVA. The model runs on *device* in *dtype* (the stored one on a GPU, float32 elsewhere),
    *batch_size* questions at a time, and says at most *max_new_tokens* tokens to each.

    *samples* is a file to write, with every answer as a line of JSON; *force* replaces one that stands there.

    Raises:
        UsageError: an option is of the wrong type, or means nothing without another.
    """

    questions: str | Path | None = None
    images: str | Path | None = None
    split: str = "test"
    text: str | Path | None = None
    num_samples: int | None = None
    conversation: str | None = None
    vision_tower: str | Path | None = None
    device: str = "cpu"
    dtype: str | None = None
    batch_size: int = BATCH_SIZE
    max_new_tokens: int = MAX_NEW_TOKENS
    samples: str | Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.questions is None and self.text is None:
            raise UsageError("give `questions` to ask, or a `text` to read, or both")
        for name in ("batch_size", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` {getattr(self, name)}: give one or more")


@dataclass(frozen=True)
class Evaluated:
    """What each checkpoint answered, by its name; the first is what the others are compared with.

    *prompt* is one question as it was put, by the *conversation*.
    """

    evaluations: dict[str, Evaluation]
    conversation: str
    prompt: str

    @property
    def baseline(self) -> str:
        """The checkpoint that the others are compared with."""
        return next(iter(self.evaluations))

    def to_keep(self) -> Evaluated:
        """The same without what another run or reader would not have: speed, and the words of a question."""
        slow = {name: replace(found, speed=None) for name, found in self.evaluations.items()}
        return replace(self, evaluations=slow, prompt="")

    def to_json(self) -> dict[str, Any]:
        """The figures of each checkpoint, and what changed, for a script to read."""
        first = self.evaluations[self.baseline]
        content: dict[str, Any] = {"conversation": self.conversation, "prompt": self.prompt, "baseline": self.baseline}
        content["checkpoints"] = {
            name: found.to_json() | ({} if found is first else {"changed": self._changes(found)})
            for name, found in self.evaluations.items()
        }
        return content

    def _changes(self, found: Evaluation) -> dict[str, Any]:
        first = self.evaluations[self.baseline]
        pairs = ((name, found.difference(first, image=image)) for name, image in KINDS)
        return {name: change.to_json() for name, change in pairs if change is not None}

    def side_by_side(self, most: int) -> list[dict[str, Any]]:
        """What each checkpoint said to *most* of the questions, those first where the others' score is not the first's.

        Neither the words of a question nor its right answer is in it: the data may not be for everyone.
        """
        asked = [*zip(*(found.answers for found in self.evaluations.values()), strict=True)]
        changed = [len({one.score for one in said}) > 1 for said in asked]
        chosen = sorted(range(len(asked)), key=lambda number: not changed[number])[:most]
        return [
            {
                "question_id": asked[number][0].question.id,
                "image": asked[number][0].question.image is not None,
                "said": {
                    name: {"text": one.text[:MOST_LETTERS], "score": round(one.score, 6)}
                    for name, one in zip(self.evaluations, asked[number], strict=True)
                },
            }
            for number in chosen
        ]

    def to_text(self) -> str:
        """The prompt, a row per checkpoint, and what changed, for a person to read."""
        lines = [f"prompt ({self.conversation}):", *(f"  {line}" for line in self.prompt.splitlines()), ""]
        if not self.prompt:
            lines = []
        width = max(len(name) for name in self.evaluations)
        for name, found in self.evaluations.items():
            lines += [f"{name:<{width}}  {row}" for row in _rows(found)]
        first = self.evaluations[self.baseline]
        for name, found in self.evaluations.items():
            if found is not first:
                lines += ["", f"{name}, against {self.baseline}:"]
                changes = ((kind, found.difference(first, image=image)) for kind, image in KINDS)
                lines += [f"  {kind:<9} {change}" for kind, change in changes if change is not None]
                if found.text_perplexity is not None and first.text_perplexity is not None:
                    lines.append(
                        f"  text      {found.text_perplexity / first.text_perplexity:.4g} times the perplexity"
                    )
                if found.speed is not None and first.speed is not None:
                    times = found.speed.against(first.speed)
                    lines.append(f"  speed     {times}; zeroed heads keep their shapes, so none is gained")
        return text_of(lines)


def evaluate(checkpoints: Sequence[Path | str], options: EvaluateOptions | None = None, **settings: Any) -> Evaluated:
    """Put the same questions and texts to every one of *checkpoints*, and compare the others with the first.

    They are directories, or ``org/name[@revision]`` on the Hub. Where there is only one, a conversion whose original
    stands beside it or in the Hub client's cache, that original comes first. *settings* are fields of
    :class:`EvaluateOptions`.

    Raises:
        UsageError: an option means nothing, or the prompt cannot be told from a checkpoint.
        CheckpointError, CalibrationError, HubError, StorageError: as the class says.
    """
    options = options_of(EvaluateOptions, options, settings)
    if not checkpoints:
        raise UsageError("give at least one checkpoint")
    samples = None if options.samples is None else as_path(options.samples)
    if samples is not None:
        check_output(samples, force=options.force)
    opened = [open_checkpoint(given, progress=options.progress) for given in checkpoints]
    if len(opened) == 1:
        opened = [*_original_of(opened[0]), *opened]
    names = [str(checkpoint.known_as) for checkpoint in opened]
    if len(set(names)) < len(names):
        raise UsageError(f"{names[-1]}: is given twice; give each checkpoint once")
    evaluations: dict[str, Evaluation] = {}
    lines: list[str] = []
    tasks: Tasks | None = None
    asked = [read_asked(checkpoint, options) for checkpoint in opened]  # what is wrong with one is seen before any work
    for name, checkpoint, of_checkpoint in zip(names, opened, asked, strict=True):
        tasks = embedded(checkpoint, of_checkpoint)
        evaluations[name] = answers_of(checkpoint, tasks, options)
        of_all = {"checkpoint": name, "fingerprint": checkpoint.fingerprint, "conversation": tasks.conversation}
        lines += [json.dumps(of_all | one.to_json()) + "\n" for one in evaluations[name].answers]
    assert tasks is not None
    if samples is not None:
        write_output(samples, "".join(lines), force=options.force)
    return Evaluated(evaluations, tasks.conversation, tasks.shown)


def answers_of(checkpoint: Checkpoint, tasks: Tasks, options: EvaluateOptions) -> Evaluation:
    """Load *checkpoint*, put *tasks* to it, and let it go again."""
    model = ResidentModel(checkpoint, device=options.device, dtype=options.dtype, progress=options.progress)
    return evaluate_model(
        model,
        tasks,
        batch_size=options.batch_size,
        max_new_tokens=options.max_new_tokens,
        progress=options.progress,
    )


@dataclass(frozen=True)
class Asked:
    """What is asked of a checkpoint, read and found to be there; *sha256* is that of the file of questions."""

    options: EvaluateOptions
    questions: tuple[Question, ...]
    sha256: str
    texts: tuple[Sample, ...]
    prompts: Prompts | None
    tower: Path | None

    def to_json(self) -> dict[str, Any]:
        """The file of the questions, without its path, and how many were asked."""
        name = "" if self.options.questions is None else Path(self.options.questions).name
        return {"file": name, "sha256": self.sha256, "count": len(self.questions)}


def embedded(checkpoint: Checkpoint, asked: Asked) -> Tasks:
    """What is *asked*, through *checkpoint*'s front end."""
    return prepare(
        *(checkpoint, asked.questions, asked.texts, asked.prompts),
        tower=asked.tower,
        device=asked.options.device,
        progress=asked.options.progress,
    )


def read_asked(checkpoint: Checkpoint, options: EvaluateOptions) -> Asked:
    """What *options* ask of *checkpoint*; refuses, before any work, what is seen to be wrong with it.

    Raises:
        UsageError: the prompt cannot be told from the checkpoint, or there is no such device.
        CheckpointError, CalibrationError, StorageError: as the class says.
    """
    check_device(options.device)
    questions: tuple[Question, ...] = ()
    texts: tuple[Sample, ...] = ()
    sha256 = ""
    prompts = tower = None
    if options.questions is not None:
        read = read_questions(options.questions, options.images, num_samples=options.num_samples, split=options.split)
        questions, sha256, prompts = read.questions, read.sha256, prompts_of(checkpoint, options.conversation)
        needed = any(question.image is not None for question in questions)
        tower = locate_tower(checkpoint, options.vision_tower, needed=needed, progress=options.progress)
    if options.text is not None:
        texts = read_texts(options.text, options.num_samples)
    return Asked(options, questions, sha256, texts, prompts, tower)


def _original_of(converted: Checkpoint) -> list[Checkpoint]:
    """The original that *converted*'s manifest names: beside it, or in the Hub client's cache; else nothing."""
    stated = converted.manifest or {}
    source = stated.get("source")
    original = original_at_hand(source, converted.path.resolve().parent) if isinstance(source, str) else None
    if original is None:
        return []
    if original.fingerprint != stated.get("fingerprint"):
        _log.warning("%s: is another model than %s was made from; give the original", original.path, converted.known_as)
        return []
    return [original]


def _rows(found: Evaluation) -> list[str]:
    """The figures of one checkpoint, in words."""
    rows = [f"{kind:<9} {share}" for kind, image in KINDS if (share := found.accuracy(image=image)) is not None]
    if found.unparsable:
        shown = ", ".join(repr(one.text[:20]) for one in found.unparsable[:3])
        rows.append(f"unparsable {len(found.unparsable)} of {len(found.answers)} answers, counted as wrong: {shown}")
    cut = sum(one.cut for one in found.answers)
    if cut:
        rows.append(f"cut       {cut} of {len(found.answers)} answers at the largest number of new tokens")
    if found.answer_perplexity is not None:
        rows.append(f"perplexity of the right answers {found.answer_perplexity:.4g}")
    if found.text_perplexity is not None:
        rows.append(f"perplexity of the text {found.text_perplexity:.4g}, {found.text_tokens} tokens")
    if found.speed is not None:
        rows.append(str(found.speed))
    return rows
