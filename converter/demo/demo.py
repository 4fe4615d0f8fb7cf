"""The whole main job on the mini LLaVA that ships with the package, offline."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint import Checkpoint
from converter.conversion import convert
from converter.demo.chat import Chat
from converter.errors import StorageError, UsageError
from converter.mask import HeadMask
from converter.verify.report import Report

_log = logging.getLogger(__name__)

MINI_LLAVA = Path(__file__).parent / "mini-llava"
QUESTIONS = Path(__file__).parent / "questions"

PRUNED_PER_LAYER = 2


@dataclass(frozen=True)
class Answer:
    """One question and what the two checkpoints said to it; *image* is the question's picture, if it has one."""

    question: str
    image: str | None
    right: str
    original: str
    converted: str


@dataclass(frozen=True)
class Demonstration:
    """What the demo made: the checkpoint, its mask and its conversion, and the answers of both."""

    original: Path
    mask: Path
    converted: Path
    report: Report
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """Paths, figures and answers for a script to read."""
        paths = {name: str(getattr(self, name)) for name in ("original", "mask", "converted")}
        return paths | {"report": self.report.to_json(), "answers": [asdict(answer) for answer in self.answers]}

    def to_text(self) -> str:
        """The report, and the answers side by side."""
        lines = [self.report.to_text(), "", f"{'question':<54} {'right':>6} {'original':>9} {'converted':>10}"]
        for answer in self.answers:
            text = answer.question.splitlines()[1 if answer.image is None else 0]
            shown = f"{answer.image or 'text'}: {text}"
            lines.append(f"{shown:<54} {answer.right:>6} {answer.original:>9} {answer.converted:>10}")
        lines += ["", f"original   {self.original}", f"mask       {self.mask}", f"converted  {self.converted}"]
        return "\n".join(lines)


def demonstrate(directory: Path, *, progress: bool = False) -> Demonstration:
    """Copy the mini LLaVA into *directory*, make a mask, convert, load both with stock code, and ask both.

    Raises:
        UsageError: *directory* is not empty.
        StorageError: it cannot be written.
    """
    original, mask_file, converted = directory / "mini-llava", directory / "mask.json", directory / "mini-llava-pruned"
    try:
        if directory.exists() and any(directory.iterdir()):
            raise UsageError(f"{directory}: is not empty; give the demo a directory of its own")
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copytree(MINI_LLAVA, original)
        checkpoint = Checkpoint.open(original)
        mask = weakest_heads(checkpoint, PRUNED_PER_LAYER)
        mask.save(mask_file)
    except OSError as error:
        raise StorageError(f"{error.filename or directory}: cannot be written: {error.strerror}") from error
    report = convert(original, converted, mask_file, progress=progress)
    questions = json.loads((QUESTIONS / "questions.json").read_text())
    said = [_ask(path, questions) for path in (original, converted)]
    answers = tuple(
        Answer(_question(q).replace("<image>\n", ""), q.get("image"), q["conversations"][1]["value"], before, after)
        for q, before, after in zip(questions, *said, strict=True)
    )
    return Demonstration(original, mask_file, converted, report, answers)


def weakest_heads(checkpoint: Checkpoint, per_layer: int) -> HeadMask:
    """A mask of the *per_layer* heads of every layer whose O_h V_h has the smallest Frobenius norm.

    Ties go to the lower head number.
    """
    geometry = checkpoint.geometry
    pruned = []
    for layer in range(geometry.num_layers):
        value = checkpoint.projection(layer, "v", "weight")
        assert value is not None  # Checkpoint.open refuses a layer without it
        values = checkpoint.read_rows(value.tensor, value.first, value.count)
        values = values.reshape(geometry.num_kv_heads, geometry.head_dim, -1)
        outputs = checkpoint.read_rows(checkpoint.output_projection(layer)).reshape(
            -1, geometry.num_heads, geometry.head_dim
        )
        norms = [
            float(np.linalg.norm(outputs[:, head] @ values[head // geometry.heads_per_group]))
            for head in range(geometry.num_heads)
        ]
        pruned.append(tuple(sorted(sorted(range(geometry.num_heads), key=lambda h: (norms[h], h))[:per_layer])))
    return HeadMask(geometry.num_heads, tuple(pruned), provenance={"metric": "norm of O_h V_h", "heads": per_layer})


def _question(entry: dict[str, Any]) -> str:
    return str(entry["conversations"][0]["value"])


def _ask(path: Path, questions: list[dict[str, Any]]) -> list[str]:
    """What the checkpoint *path* says to every question."""
    from PIL import Image

    chat = Chat(path)
    images = [Image.open(QUESTIONS / q["image"]).convert("RGB") if "image" in q else None for q in questions]
    return [chat.answer(_question(q), image) for q, image in zip(questions, images, strict=True)]
