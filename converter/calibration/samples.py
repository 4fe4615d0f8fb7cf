"""Reads calibration data: LLaVA's question files, and plain text.

A question file is a JSON list of entries, or has one entry per line (JSONL). An entry has ``conversations`` (turns of
``human`` and ``gpt``, as in LLaVA's training and ScienceQA files) or ``text`` (a question without an answer, as in
LLaVA's evaluation files). It may name an ``image``, a file in the directory of images. As in LLaVA's own code, it
becomes one ``vicuna_v1`` conversation with its answers:

- the image comes first in the first question, wherever ``<image>`` is in it;
- where an answer is only the letter of an option, as in ScienceQA, the question asks to answer with the letter.

A file whose name ends in ``.txt`` is plain text: a sample is a paragraph, or a line in a file without blank lines.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import strict_json
from ..disk import read_file
from ..errors import CalibrationError, UsageError
from ..model.front_end import IMAGE_PLACEHOLDER, LETTER_INSTRUCTION, conversation

_log = logging.getLogger(__name__)

_TEXT_SUFFIX = ".txt"


@dataclass(frozen=True)
class Sample:
    """A text, with one ``<image>`` in it if there is an *image*; *where* names file and entry in errors.

    *turns* are the (question, answer) pairs that the text is the conversation of; plain text has none.
    """

    text: str
    image: Path | None
    where: str
    turns: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Samples:
    """The samples taken from a *file*, which is named without its path, and its *sha256*."""

    file: str
    samples: tuple[Sample, ...]
    sha256: str

    @property
    def has_images(self) -> bool:
        return any(sample.image is not None for sample in self.samples)


def read_samples(path: Path | str, images: Path | str | None = None, num_samples: int | None = None) -> Samples:
    """The first *num_samples* samples of the file *path*, or all; *images* is the directory of its images.

    Raises:
        CalibrationError: the file is malformed, or an image is missing.
        UsageError: *num_samples* is not positive, or entries name images and *images* is None.
        StorageError: the file cannot be read.
    """
    path, images = Path(path), None if images is None else Path(images)
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"`num_samples` {num_samples}: take at least one sample")
    text, sha256 = read_text(path)
    if path.suffix.lower() == _TEXT_SUFFIX:
        texts = _texts(text)
        samples = [_text_sample(one, f"{path}: text {number}") for number, one in enumerate(texts[:num_samples], 1)]
        available = len(texts)
    else:
        entries = read_entries(text, path)
        samples = [_question_sample(entry, images, where) for entry, where in entries[:num_samples]]
        available = len(entries)
    if not samples:
        raise CalibrationError(f"{path}: holds no samples; give a file of questions or texts")
    if num_samples is not None and num_samples > available:
        _log.warning("%s: holds %d samples, fewer than %d", path, available, num_samples)
    return Samples(path.name, tuple(samples), sha256)


def read_text(path: Path) -> tuple[str, str]:
    """(the text, the sha256) of the file *path*; CalibrationError where it is not UTF-8."""
    content = read_file(path, CalibrationError, None)
    try:
        return content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _texts(text: str) -> list[str]:
    lines = text.strip().splitlines()
    separator = r"\n\s*\n" if any(not line.strip() for line in lines) else r"\n"
    return [part.strip() for part in re.split(separator, "\n".join(lines)) if part.strip()]


def _text_sample(text: str, where: str) -> Sample:
    if IMAGE_PLACEHOLDER in text:
        raise CalibrationError(f"{where}: has {IMAGE_PLACEHOLDER} in it, but plain text has no images; take it out")
    return Sample(text, None, where)


def read_entries(text: str, path: Path) -> list[tuple[Any, str]]:
    """(entry, its place in errors) of every entry of a JSON list or of JSON lines; CalibrationError if it is none."""
    if text.lstrip().startswith("["):
        try:
            entries = strict_json.parse(text)
        except ValueError as error:
            raise CalibrationError(f"{path}: is not JSON ({error}); mend the file") from error
        return [(entry, f"{path}: entry {number}") for number, entry in enumerate(entries, 1)]
    _refuse_object(text, path)
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append((strict_json.parse(line), f"{path}: line {number}"))
        except ValueError as error:
            raise CalibrationError(
                f"{path}: line {number}: is not JSON ({error}); give a JSON list, one JSON object a line, "
                f"or plain text in a file named *{_TEXT_SUFFIX}"
            ) from error
    return found


def _refuse_object(text: str, path: Path) -> None:
    """Raise CalibrationError where the file is one JSON object, and not the only line of a file with one per line."""
    try:
        content = strict_json.parse(text)
    except ValueError:
        return  # of one per line, a message names the line
    is_one_line = "\n" not in text.strip()
    if not isinstance(content, dict) or (is_one_line and {"conversations", "text"} & content.keys()):
        return
    problem = next(iter(content.values()), None)
    if isinstance(problem, dict) and {"question", "choices"} <= problem.keys():
        raise CalibrationError(
            f"{path}: is ScienceQA's own problems.json; give LLaVA's question file, which LLaVA's "
            "scripts/convert_sqa_to_llava.py makes of it"
        )
    raise CalibrationError(f"{path}: is one JSON object; give a JSON list of questions, or one JSON object a line")


def _question_sample(entry: Any, images: Path | None, where: str) -> Sample:
    if not isinstance(entry, dict):
        raise CalibrationError(f"{where}: is not a JSON object; give questions as LLaVA's own files have them")
    name = entry.get("id", entry.get("question_id"))
    if name is not None:
        where = f"{where} (id {name})"
    turns = _turns(entry, where)
    if any("\ud800" <= letter <= "\udfff" for turn in turns for text in turn for letter in text or ""):
        raise CalibrationError(f"{where}: has half a character (a lone surrogate) in its text; mend it")
    placeholders = [question.count(IMAGE_PLACEHOLDER) for question, _ in turns]
    if any(answer is not None and IMAGE_PLACEHOLDER in answer for _, answer in turns):
        raise CalibrationError(f"{where}: an answer has {IMAGE_PLACEHOLDER} in it; take it out")
    if sum(placeholders) > 1 or any(placeholders[1:]):
        raise CalibrationError(
            f"{where}: has {IMAGE_PLACEHOLDER} more than once or behind the first question; "
            "one image in the first question is supported"
        )
    image = image_of(entry.get("image"), images, where)
    if image is None and any(placeholders):
        raise CalibrationError(f"{where}: has {IMAGE_PLACEHOLDER} but names no image; add it, or take it out")
    question = turns[0][0].replace(IMAGE_PLACEHOLDER, "").strip()
    if image is not None:
        question = f"{IMAGE_PLACEHOLDER}\n{question}"
    turns = [(question, turns[0][1]), *turns[1:]]
    return Sample(conversation(turns), image, where, tuple(turns))


def _turns(entry: dict[str, Any], where: str) -> list[tuple[str, str | None]]:
    """(question, answer) of every turn; only the last answer may be None."""
    if "conversations" not in entry and isinstance(entry.get("text"), str):
        return [(entry["text"], None)]
    said = entry.get("conversations")
    if not isinstance(said, list) or not said:
        raise CalibrationError(f"{where}: has neither conversations nor a text; give questions as LLaVA's files do")
    for number, turn in enumerate(said):
        speaker = ("human", "gpt")[number % 2]
        if not isinstance(turn, dict) or turn.get("from") != speaker or not isinstance(turn.get("value"), str):
            raise CalibrationError(
                f'{where}: conversations[{number}] is not {{"from": "{speaker}", "value": a text}}; '
                "human and gpt take turns"
            )
    values: Sequence[str | None] = [turn["value"].strip() for turn in said] + [None] * (len(said) % 2)
    return [_with_instruction(values[i] or "", values[i + 1]) for i in range(0, len(values), 2)]


def _with_instruction(question: str, answer: str | None) -> tuple[str, str | None]:
    is_letter = answer is not None and re.fullmatch("[A-Z]", answer) is not None
    if is_letter and LETTER_INSTRUCTION not in question:
        question = f"{question}\n{LETTER_INSTRUCTION}"
    return question, answer


def image_of(name: Any, images: Path | None, where: str) -> Path | None:
    """The file of the image *name* in *images*; CalibrationError or UsageError where there is none."""
    if name is None:
        return None
    if not isinstance(name, str) or not name:
        raise CalibrationError(f"{where}: image is {name!r}, not the name of one file; one image an entry is supported")
    if images is None:
        raise UsageError(f"{where}: names the image {name}; say with `images` which directory it is in")
    if not (images / name).is_file():
        raise CalibrationError(f"{where}: there is no image {images / name}; check `images`")
    return images / name
