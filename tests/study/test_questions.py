"""Questions are read from every format that people have them in, and what is wrong is said with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.mini.questions import write_scienceqa
from s4convert.errors import CalibrationError, StorageError, UsageError
from s4convert.study.questions import LETTERS, parse_choice, read_questions

LETTER = "Answer with the option's letter from the given choices directly."
ASKED = "What is red?\nA. the box\nB. the cup"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    (directory / "7").mkdir(parents=True)
    for name in ("1.png", "7/image.png"):
        Image.new("RGB", (4, 4)).save(directory / name)
    return directory


def turns(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answered}]


def write(tmp_path: Path, content: object, name: str = "questions.json") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lines(*entries: object) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


# --- LLaVA's list ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answered", ["B", "The answer is B.", "B. the cup"])
def test_a_letter_of_llavas_list_is_a_choice_and_is_asked_for(tmp_path: Path, images: Path, answered: str) -> None:
    entry = {"id": "1", "image": "1.png", "conversations": turns(f"{ASKED}\n<image>", answered)}
    read = read_questions(write(tmp_path, [entry]), images)
    (question,) = read.questions
    assert (question.id, question.answers, question.options, question.is_choice) == ("1", ("B",), 2, True)
    assert question.text == f"<image>\n{ASKED}\n{LETTER}"
    assert question.image == images / "1.png"
    assert (read.file, len(read.sha256)) == ("questions.json", 64)


def test_a_question_that_asks_for_the_letter_itself_asks_once(tmp_path: Path) -> None:
    (question,) = read_questions(
        write(tmp_path, [{"id": 1, "conversations": turns(f"{ASKED}\n{LETTER}", "A")}])
    ).questions
    assert question.text.count(LETTER) == 1


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        (ASKED, 2),
        ("Options: (A) a (B) b (C) c", 3),
        ("Is E. coli larger than vitamin D. falciparum?\nA. yes\nB. no", 2),
        ("A. a\nB. b\nC. c\nD. d\nE. e", 5),
        ("say a letter", 5),
    ],
)
def test_options_are_counted_from_a_on(tmp_path: Path, asked: str, options: int) -> None:
    (question,) = read_questions(write(tmp_path, [{"id": 1, "conversations": turns(asked, "A")}])).questions
    assert question.options == options


def test_any_other_answer_is_open_and_no_letter_is_asked_for(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, [{"id": 1, "conversations": turns("How many?", "two")}])).questions
    assert (question.answers, question.is_choice, question.text) == (("two",), False, "How many?")


# --- VQA lines ------------------------------------------------------------------------------------------------


def test_vqa_lines_have_one_answer_or_those_of_several_people(tmp_path: Path, images: Path) -> None:
    several = {"question_id": 3, "text": "How many?", "answers": ["two", "two", "A"]}
    of_vqa = {"question_id": 4, "text": "How many?", "answers": [{"answer": "two", "answer_id": 1}, {"answer": "2"}]}
    one = {"question_id": 2, "image": "1.png", "text": "What is red?", "answer": "the box"}
    path = write(tmp_path, lines(one, several, of_vqa), "vqa.jsonl")
    found = read_questions(path, images).questions
    assert [question.id for question in found] == ["2", "3", "4"]
    assert [question.answers for question in found] == [("the box",), ("two", "two", "A"), ("two", "2")]
    assert [question.text for question in found] == ["<image>\nWhat is red?", "How many?", "How many?"]
    assert not any(question.is_choice for question in found)


# --- ScienceQA's own files ------------------------------------------------------------------------------------

PROBLEM = {
    "question": "Which  is red?",
    "choices": ["the box", "the cup"],
    "answer": 1,
    "hint": "  The  cup is. ",
    "image": "image.png",
    "lecture": "",
    "solution": "",
}


def write_problems(tmp_path: Path, problem: object, *, split: str = "test") -> Path:
    write(tmp_path, {split: ["7"]}, "pid_splits.json")
    return write(tmp_path, {"7": problem, "8": PROBLEM}, "problems.json")


def test_scienceqas_own_files_are_worded_as_convert_sqa_to_llava_does(tmp_path: Path, images: Path) -> None:
    """``Context: ...\\nQuestion: ...\\nOptions: (A) ...``, of which two spaces become one, once."""
    path = write_problems(tmp_path, PROBLEM)
    (question,) = read_questions(path, images).questions
    asked = "Context: The cup is.\nQuestion: Which is red?\nOptions: (A) the box (B) the cup"
    assert question.text == f"<image>\n{asked}\n{LETTER}"
    assert (question.id, question.answers, question.options) == ("7", ("B",), 2)
    assert question.image == images / "7" / "image.png"
    assert read_questions(tmp_path, images).questions == (question,)


@pytest.mark.parametrize("hint", ["", "  "])
def test_a_problem_without_a_hint_or_an_image_says_so_as_llava_does(tmp_path: Path, hint: str) -> None:
    path = write_problems(tmp_path, PROBLEM | {"hint": hint, "image": None}, split="val")
    (question,) = read_questions(path, split="val").questions
    assert question.text.startswith("Context: N/A\nQuestion: Which is red?\nOptions: ")
    assert question.image is None


@pytest.mark.parametrize(
    "change",
    [
        {"question": ...},
        {"hint": ...},
        {"hint": 3},
        {"choices": ...},
        {"choices": 3},
        {"choices": ["x"] * 6},
        {"answer": ...},
        {"answer": 2},
        {"answer": -1},
        {"answer": "B"},
    ],
)
def test_a_problem_that_lacks_what_it_needs_is_refused(tmp_path: Path, images: Path, change: dict[str, Any]) -> None:
    changed = {name: value for name, value in (PROBLEM | change).items() if value is not ...}
    path = write_problems(tmp_path, changed)
    with pytest.raises(CalibrationError, match=r"problems\.json: problem 7: lacks question, hint, choices"):
        read_questions(path, images)


def test_problems_without_their_split_are_refused(tmp_path: Path, images: Path) -> None:
    path = write_problems(tmp_path, PROBLEM)
    with pytest.raises(CalibrationError, match=r"pid_splits\.json: names no questions of split 'dev'; .* `split`"):
        read_questions(path, images, split="dev")
    write(tmp_path, {"test": ["9"]}, "pid_splits.json")
    with pytest.raises(CalibrationError, match="problem 9: lacks"):
        read_questions(path, images)
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(StorageError, match=r"pid_splits\.json"):
        read_questions(path, images)


# --- refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (3, "entry 1: is not a JSON object"),
        ({"text": "What?", "answer": "it"}, "entry 1: has neither id nor question_id"),
        ({"id": 1}, r"entry 1 \(id 1\): has neither a text nor one question and answer"),
        ({"id": 1, "conversations": turns("What?", "it") * 2}, "has neither a text nor one question and answer"),
        ({"id": 1, "text": "What?"}, "has no right answer"),
        ({"id": 1, "text": "What?", "answer": ""}, "has no right answer"),
        ({"id": 1, "text": "What?", "answers": []}, "has no right answer"),
        ({"id": 1, "text": "What?", "answers": ["it", 3]}, "has no right answer"),
        ({"id": 1, "conversations": turns(ASKED, "D")}, "its answer D is beyond its 2 options"),
        ({"id": 1, "text": "<image>\nWhat?", "answer": "it"}, "has <image> but names no image"),
        ({"id": 1, "text": "What \ud800?", "answer": "it"}, "has half a character"),
        ({"id": 1, "text": "What?", "answer": "\udfff"}, "has half a character"),
        ({"id": 1, "image": "2.png", "text": "What?", "answer": "it"}, r"2\.png"),
        ({"id": 1, "image": "../1.png", "text": "What?", "answer": "it"}, r"\.\./1\.png"),
        ({"id": 1, "image": 3, "text": "What?", "answer": "it"}, r"entry 1 \(id 1\)"),
    ],
)
def test_an_entry_that_cannot_be_asked_is_refused_with_its_place(
    tmp_path: Path, images: Path, entry: object, said: str
) -> None:
    with pytest.raises(CalibrationError, match=said) as caught:
        read_questions(write(tmp_path, [entry]), images)
    assert str(caught.value).startswith(f"{tmp_path / 'questions.json'}: entry 1")


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no questions"), ("[]", "holds no questions"), ("[", "is not JSON"), ("{}", "is one JSON object"),
     ('{"id": 1}\n{', "line 2"), ("What?", "line 1: is not JSON")],
)  # fmt: skip
def test_a_file_that_holds_no_questions_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(CalibrationError, match=said):
        read_questions(write(tmp_path, content))


def test_images_without_their_directory_and_no_samples_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [{"id": 1, "image": "1.png", "text": "What?", "answer": "it"}])
    with pytest.raises(UsageError, match="`images`"):
        read_questions(path)
    with pytest.raises(UsageError, match="`num_samples` 0"):
        read_questions(path, num_samples=0)


def test_the_first_samples_are_taken(tmp_path: Path) -> None:
    write_scienceqa(tmp_path, num_image=0, num_text=5)
    found = read_questions(tmp_path / "questions.json", num_samples=3).questions
    assert [question.id for question in found] == ["1", "2", "3"]


# --- answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("B. the cup", "B"),
        ("The answer is B.", "B"),
        ("I see. The answer is B, or not", "B"),
        ("The answer is A. The answer is B.", None),
        ("The answer is Z.", None),
        ("b", None),
        ("D", None),
        ("B.", None),
        ("AB", None),
        ("", None),
        ("the cup", None),
    ],
)
def test_an_answer_names_an_option_by_the_rules_of_eval_science_qa(text: str, letter: str | None) -> None:
    number = parse_choice(text, 3)
    assert (None if number is None else LETTERS[number]) == letter
