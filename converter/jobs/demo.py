"""The whole main job on the mini LLaVA that ships with the package, offline."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import MINI_LLAVA, QUESTIONS
from ..errors import StorageError, UsageError, text_of
from ..model.decoder import stock_code
from ..model.front_end import LETTER_INSTRUCTION, conversation, load_processor
from ..verify.report import Report
from .convert import convert
from .mask import make_mask

if TYPE_CHECKING:
    from PIL import Image


class Chat:
    """A checkpoint of the Hugging Face layout, loaded by ``LlavaForConditionalGeneration`` in float32."""

    def __init__(self, path: Path) -> None:
        from transformers import LlavaForConditionalGeneration

        with stock_code():
            self._model = LlavaForConditionalGeneration.from_pretrained(path).float().eval()
            self._processor = load_processor(path)

    def answer(self, question: str, image: Image.Image | None) -> str:
        """What greedy ``generate`` says to *question*, in which ``<image>`` stands for the image."""
        import torch

        prompt = conversation([(f"{question}\n{LETTER_INSTRUCTION}", None)])
        with stock_code(), torch.inference_mode():
            inputs = self._processor(text=prompt, images=image, return_tensors="pt")
            output = self._model.generate(**inputs, do_sample=False, max_new_tokens=4)
        new_tokens = output[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(new_tokens, skip_special_tokens=True)).strip()


RATE = 0.25  # two of the eight heads of every layer


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
        lines = ["", f"{'question':<54} {'right':>6} {'original':>9} {'converted':>10}"]
        for answer in self.answers:
            text = answer.question.splitlines()[1 if answer.image is None else 0]
            shown = f"{answer.image or 'text'}: {text}"
            lines.append(f"{shown:<54} {answer.right:>6} {answer.original:>9} {answer.converted:>10}")
        lines += ["", f"original   {self.original}", f"mask       {self.mask}", f"converted  {self.converted}"]
        return f"{self.report.to_text()}\n{text_of(lines)}"


def demonstrate(directory: Path | str = "s4convert-demo", *, progress: bool = False) -> Demonstration:
    """Copy the mini LLaVA into *directory*, make a mask, convert, load both with stock code, and ask both.

    Raises:
        UsageError: *directory* is not empty.
        StorageError: it cannot be written.
    """
    directory = Path(directory)
    original, mask, converted = directory / "mini-llava", directory / "mask.json", directory / "mini-llava-pruned"
    try:
        if directory.exists() and any(directory.iterdir()):
            raise UsageError(f"{directory}: is not empty; remove it, or give the demo another directory")
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copytree(MINI_LLAVA, original)
    except OSError as error:
        raise StorageError(f"{error.filename or directory}: cannot be written: {error.strerror}") from error
    make_mask(original, mask, metric="magnitude", schedule="uniform", rate=RATE)
    report = convert(original, converted, mask, progress=progress)
    questions = json.loads((QUESTIONS / "questions.json").read_text())
    said = [_ask(path, questions) for path in (original, converted)]
    answers = tuple(
        Answer(_question(q).replace("<image>\n", ""), q.get("image"), q["conversations"][1]["value"], before, after)
        for q, before, after in zip(questions, *said, strict=True)
    )
    return Demonstration(original, mask, converted, report, answers)


def _question(entry: dict[str, Any]) -> str:
    return str(entry["conversations"][0]["value"])


def _ask(path: Path, questions: list[dict[str, Any]]) -> list[str]:
    """What the checkpoint *path* says to every question."""
    from PIL import Image

    chat = Chat(path)
    images = [Image.open(QUESTIONS / q["image"]).convert("RGB") if "image" in q else None for q in questions]
    return [chat.answer(_question(q), image) for q, image in zip(questions, images, strict=True)]
