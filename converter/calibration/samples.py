"""Reads calibration data: LLaVA's question files, and plain text.

A question file is a JSON list of entries, or has one entry per line (JSONL). An entry has ``conversations`` (turns of
``human`` and ``gpt``, as in LLaVA's training and ScienceQA files) or ``text`` (a question without an answer, as in
LLaVA's evaluation files). It may name an ``image``, a file in the directory of images. As in LLaVA's own code, it
becomes one ``vicuna_v1`` conversation with its answers:

- the image comes first in the first question, wherever ``<image>`` is in it;
- where an answer is only the letter of an option, as in ScienceQA, the question asks to answer with the letter.

A file whose name ends in ``.txt`` is plain text: its paragraphs (its lines, in a file without blank lines) are joined,
and packed into windows of equal length where the tokenizer is at hand.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from .. import strict_json
from ..choices import WINDOW
from ..disk import read_file
from ..errors import CalibrationError, UsageError, shown
from ..model.front_end import IMAGE_PLACEHOLDER, LETTER_INSTRUCTION, conversation

_log = logging.getLogger(__name__)

MAX_TOKENS = 2048  # LLaVA's model_max_length; as in its training, the rest of a question is cut off
_TEXT_SUFFIX = ".txt"
_MAX_IMAGE_NAME = 1000  # letters, which messages show
_NO_SAMPLES = "holds no samples; give a file of questions or texts"

Paths: TypeAlias = "Path | str | Sequence[Path | str]"


@dataclass(frozen=True)
class DataFile:
    """A file of calibration data: its *name* without its path, and its *sha256*.

    Plain text is packed into windows of *window* tokens, of which at most *most* are taken; None of questions.
    """

    name: str
    sha256: str
    window: int | None = None
    most: int | None = None


@dataclass(frozen=True)
class Sample:
    """A text, with one ``<image>`` in it if there is an *image*; *where* names file and entry in errors.

    *turns* are the (question, answer) pairs that the text is the conversation of; plain text has none. A text of a
    *file* with windows is all of it, and becomes as many inputs as there are windows.
    """

    text: str
    image: Path | None
    where: str
    turns: tuple[tuple[str, str | None], ...] = ()
    file: DataFile | None = None

    @property
    def answers(self) -> tuple[tuple[int, int], ...]:
        """The places in the text that answers take, each (first letter, letter behind its ``</s>``)."""
        turns = self.turns
        return tuple(
            (len(conversation([*turns[:number], (turns[number][0], None)])), len(conversation(turns[: number + 1])))
            for number, (_, answer) in enumerate(turns)
            if answer is not None
        )


@dataclass(frozen=True)
class Samples:
    """The *samples* of one file or more, in their order."""

    samples: tuple[Sample, ...]

    @property
    def files(self) -> tuple[DataFile, ...]:
        """The files, each once."""
        return tuple(dict.fromkeys(sample.file for sample in self.samples if sample.file is not None))

    @property
    def has_images(self) -> bool:
        return any(sample.image is not None for sample in self.samples)


def read_samples(
    paths: Paths, images: Paths | None = None, num_samples: int | None = None, window: int | None = None
) -> Samples:
    """The first *num_samples* samples of each of the files *paths*, or all, in order.

    *images* is the directory of their images, or one for each file. Plain text is packed into windows of *window*
    tokens (:data:`~s4convert.choices.WINDOW`), each of which is a sample.

    Raises:
        CalibrationError: a file is malformed, or an image is missing.
        UsageError: *num_samples* or *window* is out of range, a file is given twice, there are more or fewer *images*
            than files, or entries name images and *images* is None.
        StorageError: a file cannot be read.
    """
    files, directories = as_paths(paths), as_paths(images)
    if not files:
        raise UsageError("give at least one file of `calibration` data")
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"`num_samples` {num_samples}: take at least one sample")
    window = WINDOW if window is None else window
    if not 2 <= window <= MAX_TOKENS:
        raise UsageError(f"`window` {window}: give 2 to {MAX_TOKENS} tokens")
    if len(directories) > 1 and len(directories) != len(files):
        raise UsageError(
            f"{len(directories)} `images` for {len(files)} files of `calibration` data; give one directory for all, "
            "or one for each"
        )
    of_each: list[Path | None] = [None] * len(files)
    if directories:
        of_each = [*directories] if len(directories) == len(files) else [*directories] * len(files)
    samples: list[Sample] = []
    for path, directory in zip(files, of_each, strict=True):
        samples += _read_file(path, directory, num_samples, window)
    read = Samples(tuple(samples))
    if len({file.sha256 for file in read.files}) < len(files):
        raise UsageError("two files of `calibration` data are the same; give each once")
    return read


def as_paths(given: Paths | None) -> tuple[Path, ...]:
    """The one path or the paths that are *given*."""
    if given is None:
        return ()
    return (Path(given),) if isinstance(given, str | Path) else tuple(Path(path) for path in given)


def read_texts(path: Path | str, num_samples: int | None = None) -> tuple[Sample, ...]:
    """The first *num_samples* samples of the file *path*, or all; one of plain text is a paragraph, or a line.

    Raises:
        CalibrationError, UsageError, StorageError: as of :func:`read_samples`.
    """
    path = Path(path)
    if not _is_text(path):
        return read_samples(path, None, num_samples).samples
    texts, _ = _texts(read_text(path)[0], path)
    _tell_too_few(path, len(texts), num_samples)
    return tuple(Sample(text, None, f"{path}: text {number}") for number, text in enumerate(texts[:num_samples], 1))


def _read_file(path: Path, images: Path | None, num_samples: int | None, window: int) -> list[Sample]:
    text, sha256 = read_text(path)
    if _is_text(path):
        texts, separator = _texts(text, path)
        file = DataFile(path.name, sha256, window, num_samples)
        return [Sample(separator.join(texts), None, str(path), file=file)]
    entries, file = read_entries(text, path), DataFile(path.name, sha256)
    if not entries:
        raise CalibrationError(f"{path}: {_NO_SAMPLES}")
    _tell_too_few(path, len(entries), num_samples)
    return [replace(_question_sample(entry, images, where), file=file) for entry, where in entries[:num_samples]]


def _is_text(path: Path) -> bool:
    return path.suffix.lower() == _TEXT_SUFFIX


def _tell_too_few(path: Path, available: int, num_samples: int | None) -> None:
    if num_samples is not None and num_samples > available:
        _log.warning("%s: holds %d samples, fewer than %d", path, available, num_samples)


def read_text(path: Path) -> tuple[str, str]:
    """(the text, the sha256) of the file *path*; CalibrationError where it is not UTF-8."""
    content = read_file(path, CalibrationError, None)
    try:
        return content.decode("utf-8-sig"), hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _texts(text: str, path: Path) -> tuple[list[str], str]:
    """(the paragraphs of *text*, or its lines where none is blank; what stands between them)."""
    lines = text.strip().splitlines()
    pattern, separator = (r"\n\s*\n", "\n\n") if any(not line.strip() for line in lines) else (r"\n", "\n")
    texts = [part.strip() for part in re.split(pattern, "\n".join(lines)) if part.strip()]
    if not texts:
        raise CalibrationError(f"{path}: {_NO_SAMPLES}")
    for number, one in enumerate(texts, 1):
        if IMAGE_PLACEHOLDER in one:
            raise CalibrationError(
                f"{path}: text {number}: has {IMAGE_PLACEHOLDER} in it, but plain text has no images; take it out"
            )
    return texts, separator


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
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_IMAGE_NAME:
        raise CalibrationError(
            f"{where}: image is {shown(name)}, not the name of one file; one image an entry is supported"
        )
    if images is None:
        raise UsageError(f"{where}: names the image {name}; say with `images` which directory it is in")
    if not (images / name).is_file():
        raise CalibrationError(f"{where}: there is no image {images / name}; check `images`")
    return images / name
