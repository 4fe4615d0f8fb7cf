"""Reads questions with their right answers, in the formats that people have them in.

- LLaVA's list for ScienceQA (what ``llava.eval.model_vqa_science`` reads): a right answer is the letter of an option,
  or ``The answer is B.``; any other text is an open answer.
- ScienceQA's own ``problems.json``, with ``pid_splits.json`` beside it; the prompt is LLaVA's ``CQM`` form of it.
- LLaVA's VQA lines (JSONL): ``question_id``, ``text``, ``image``, and ``answer``, or ``answers`` of several people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import strict_json
from ..calibration.samples import image_of, read_entries, read_text
from ..errors import CalibrationError, UsageError, shown
from ..model.front_end import IMAGE_PLACEHOLDER, LETTER_INSTRUCTION

LETTERS = "ABCDE"
PROBLEMS_FILE, SPLITS_FILE = "problems.json", "pid_splits.json"
_SAID = re.compile(r"The answer is ([A-Z]).")  # whatever follows: as eval_science_qa has it
_OPTION = re.compile(r"(?:^|[\s(])([A-E])[.)]\s")


@dataclass(frozen=True)
class Question:
    """*text* is what is asked, with ``<image>`` in front where there is an *image*; *where* names its place in errors.

    *answers* are right: one letter of *options* choices; where *options* is 0, the open answers of one or more people.
    """

    id: str
    text: str
    image: Path | None
    answers: tuple[str, ...]
    options: int
    where: str

    @property
    def is_choice(self) -> bool:
        """Whether the answer is the letter of an option."""
        return self.options > 0


@dataclass(frozen=True)
class Questions:
    """The questions of a *file*, and its *sha256*."""

    file: str
    questions: tuple[Question, ...]
    sha256: str


def read_questions(
    path: Path | str, images: Path | str | None = None, *, num_samples: int | None = None, split: str = "test"
) -> Questions:
    """The first *num_samples* questions of *path*, or all; *images* is the directory of their images.

    Of ScienceQA's own files, *path* is ``problems.json`` or its directory, and *split* names the questions.

    Raises:
        CalibrationError: the file is malformed, a question has no right answer, or an image is missing.
        UsageError: *num_samples* is not positive, or entries name images and *images* is None.
        StorageError: the file cannot be read.
    """
    path, images = Path(path), None if images is None else Path(images)
    if num_samples is not None and num_samples < 1:
        raise UsageError(f"`num_samples` {num_samples}: take at least one sample")
    if path.is_dir():
        path = path / PROBLEMS_FILE
    content, sha256 = read_text(path)
    parsed = _parsed_object(content)
    if parsed is not None:
        questions = _problems(parsed, path, images, split)
    else:
        questions = [_question(entry, images, where) for entry, where in read_entries(content, path)]
    if not questions:
        raise CalibrationError(f"{path}: holds no questions; give one of the formats of docs/evaluate.md")
    return Questions(path.name, tuple(questions[:num_samples]), sha256)


def parse_choice(text: str, options: int) -> int | None:
    """The number of the option that the answer *text* names, by the rules of LLaVA's ``eval_science_qa``; else None."""
    letter = text
    if len(text) >= 3 and text[0] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    elif text not in LETTERS or len(text) != 1:
        said = _SAID.findall(text)
        letter = said[0] if len(said) == 1 else ""
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[:options] else None


def _parsed_object(content: str) -> dict[str, Any] | None:
    """*content* where it is one JSON object of ScienceQA's problems; else None."""
    if not content.lstrip().startswith("{"):
        return None
    try:
        parsed = strict_json.parse(content)
    except ValueError:
        return None  # one object a line, or a fault that is told where lines are read
    is_problems = isinstance(parsed, dict) and parsed and all(isinstance(one, dict) for one in parsed.values())
    return parsed if is_problems else None


def _question(entry: Any, images: Path | None, where: str) -> Question:
    if not isinstance(entry, dict):
        raise CalibrationError(f"{where}: is not a JSON object; give questions as docs/evaluate.md shows them")
    name = entry.get("id", entry.get("question_id"))
    if name is None:
        raise CalibrationError(f"{where}: has neither id nor question_id, which name its answer; add one")
    where = f"{where} (id {shown(name)})"
    text, right = _said(entry, where)
    image = image_of(entry.get("image"), images, where)
    choice = _letter_in(right[0])
    options = 0
    if choice is not None and len(right) == 1:
        named = set(_OPTION.findall(text))  # only A, B, C... are options: "E. coli" is none
        options = next((number for number, letter in enumerate(LETTERS) if letter not in named), 0) or len(LETTERS)
        right = (choice,)
        if LETTERS.index(choice) >= options:
            raise CalibrationError(f"{where}: its answer {choice} is beyond its {options} options; mend the file")
    if image is None and IMAGE_PLACEHOLDER in text:
        raise CalibrationError(f"{where}: has {IMAGE_PLACEHOLDER} but names no image; add it, or take it out")
    return _asked(str(name), text, image, right, options, where)


def _asked(name: str, text: str, image: Path | None, answers: tuple[str, ...], options: int, where: str) -> Question:
    """The question as ``model_vqa_science`` puts it: the image first, and what kind of answer is wanted last."""
    if any("\ud800" <= letter <= "\udfff" for part in (text, *answers) for letter in part):
        raise CalibrationError(f"{where}: has half a character (a lone surrogate) in its text; mend it")
    text = text.replace(IMAGE_PLACEHOLDER, "").strip()
    if options and LETTER_INSTRUCTION not in text:
        text = f"{text}\n{LETTER_INSTRUCTION}"
    return Question(name, text if image is None else f"{IMAGE_PLACEHOLDER}\n{text}", image, answers, options, where)


def _said(entry: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """(what is asked, the right answers)."""
    turns = entry.get("conversations")
    if isinstance(turns, list) and len(turns) == 2 and all(isinstance(turn, dict) for turn in turns):
        asked, answered = (turn.get("value") for turn in turns)
        answers = [answered]
    else:
        asked, answers = entry.get("text"), entry.get("answers", [entry.get("answer")])
        if isinstance(answers, list):
            answers = [one.get("answer") if isinstance(one, dict) else one for one in answers]
    if not isinstance(asked, str):
        raise CalibrationError(f"{where}: has neither a text nor one question and answer in conversations; mend it")
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) and one for one in answers):
        raise CalibrationError(f"{where}: has no right answer to compare with; add answer, or answers of several")
    return asked, tuple(answers)


def _letter_in(answer: str) -> str | None:
    """The letter of an option that the right *answer* is, if it is one."""
    number = parse_choice(answer.strip(), len(LETTERS))
    return None if number is None else LETTERS[number]


def _problems(problems: Mapping[str, Any], path: Path, images: Path | None, split: str) -> list[Question]:
    """The questions of ScienceQA's *split*, as LLaVA's ``convert_sqa_to_llava`` words them (CQM-A)."""
    splits_path = path.with_name(SPLITS_FILE)
    try:
        splits = strict_json.parse(read_text(splits_path)[0])
        names = [str(name) for name in splits[split]]
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{splits_path}: names no questions of split {shown(split)}; mend it, or `split`"
        ) from error
    return [_problem(name, problems.get(name), images, f"{path}: problem {name}") for name in names]


def _problem(name: str, problem: Any, images: Path | None, where: str) -> Question:
    try:
        choices, answer = list(problem["choices"]), problem["answer"]
        lettered = [(LETTERS[number], choice) for number, choice in enumerate(choices)]
        options = " ".join(f"({letter}) {choice}" for letter, choice in lettered)
        hint = problem["hint"].strip() or "N/A"
        text = f"Context: {hint}\nQuestion: {problem['question']}\nOptions: {options}\n".replace("  ", " ")
        right = LETTERS[range(len(choices)).index(answer)]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise CalibrationError(
            f"{where}: lacks question, hint, choices (5 at most) or the number of the right one, as ScienceQA's own "
            "file has them; mend it"
        ) from error
    stored = problem.get("image")
    image = None if stored is None else image_of(f"{name}/{stored}", images, where)
    return _asked(name, text, image, (right,), len(choices), where)
