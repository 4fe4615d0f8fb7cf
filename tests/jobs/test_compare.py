"""Two samples files are compared question by question, or the reason why they cannot be is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import s4convert
from s4convert.errors import StorageError, UsageError
from tests.support.command_line import run_here


def answer(question: object, score: float, **fields: Any) -> dict[str, Any]:
    line = {"checkpoint": "m", "fingerprint": "f", "conversation": "vicuna_v1", "question_id": question}
    return {**line, "image": False, "answers": ["A"], "text": "A", "score": score} | fields


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return write(tmp_path / "before.jsonl", *(answer(f"q{n}", 1.0, image=n < 4) for n in range(10)))


def test_answers_are_paired_by_their_question_and_not_by_their_place(before: Path, tmp_path: Path) -> None:
    lines = [answer(f"q{n}", float(n not in (1, 7)), image=n < 4) for n in reversed(range(10))]
    found = s4convert.compare(before, write(tmp_path / "after.jsonl", *lines))
    assert (found.lost, found.gained) == (("q1", "q7"), ())
    changed = found.to_json()["changed"]
    assert {kind: change["points"] for kind, change in changed.items()} == {
        "accuracy": -20.0,
        "image": -25.0,
        "text": pytest.approx(-100 / 6, abs=0.01),
    }
    assert changed["accuracy"]["p_value"] == 0.5
    assert found.first.accuracy() != found.second.accuracy()


def test_the_command_prints_text_or_json(before: Path, tmp_path: Path) -> None:
    after = write(tmp_path / "after.jsonl", *(answer(f"q{n}", float(n > 0), image=n < 4) for n in range(10)))
    said = run_here("compare", before, after)
    assert (said.exit_code, said.stderr) == (0, "")
    assert "lost      questions q0\n" in said.stdout
    assert "m: 90.0% (59.6% to 98.2%), 10 questions\n" in said.stdout
    content = json.loads(run_here("compare", before, after, "--json").stdout)
    assert content["lost_questions"] == ["q0"]
    assert content["second"]["accuracy"]["percent"] == 90.0
    assert content["second"]["fingerprint"] == "f"


def test_many_questions_are_counted_and_not_all_named(before: Path, tmp_path: Path) -> None:
    first = write(tmp_path / "first.jsonl", *(answer(n, 0.0) for n in range(12)))
    second = write(tmp_path / "second.jsonl", *(answer(n, 1.0) for n in range(12)))
    assert "gained    questions 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more" in s4convert.compare(first, second).to_text()


def test_of_several_checkpoints_one_must_be_named(before: Path, tmp_path: Path) -> None:
    lines = [answer(f"q{n}", 0.5, image=n < 4, checkpoint=name) for name in ("x", "y") for n in range(10)]
    several = write(tmp_path / "several.jsonl", *lines)
    said = run_here("compare", before, several)
    assert said.exit_code == 2
    assert said.error == f"{several}: holds 'x', 'y'; say with --checkpoint which one is compared"
    assert s4convert.compare(before, several, checkpoint="y").second.checkpoint == "y"
    assert s4convert.compare(several, before, checkpoint="x").first.checkpoint == "x"
    with pytest.raises(UsageError, match="`checkpoint` which one"):
        s4convert.compare(before, several, checkpoint="z")
    with pytest.raises(UsageError, match="leave it out"):
        s4convert.compare(before, before, checkpoint="m")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], r"after\.jsonl: lacks question 'q9' of .*before\.jsonl"),
        (lambda lines: [*lines, answer("q10", 1.0)], r"before\.jsonl: lacks question 'q10' of .*after\.jsonl"),
        (lambda lines: [*lines[:-1], answer("q9", 1.0, answers=["B"])], "asks something else in question 'q9'"),
        (lambda lines: [*lines[:-1], answer("q9", 1.0, image=True)], "asks something else in question 'q9'"),
        (lambda lines: [*lines, lines[0]], "line 11: has question 'q0' again"),
    ],
)
def test_files_over_other_questions_are_refused(before: Path, tmp_path: Path, change: Any, said: str) -> None:
    lines = [json.loads(line) for line in before.read_text().splitlines()]
    with pytest.raises(UsageError, match=said):
        s4convert.compare(before, write(tmp_path / "after.jsonl", *change(lines)))


@pytest.mark.parametrize(
    "line",
    ["{", "3", "[]", "{}", json.dumps(answer("q", 2.0)), json.dumps(answer("q", -1)),
     json.dumps(answer("q", 1) | {"score": "x"}), json.dumps(answer("q", 1, answers=3)), '{"score": NaN}', "[" * 9999],
)  # fmt: skip
def test_what_is_no_samples_file_is_refused_with_its_line(before: Path, tmp_path: Path, line: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(before.read_text() + line)
    with pytest.raises(UsageError, match=r"bad\.jsonl: line 11: is no answer of a samples file; .* `samples`"):
        s4convert.compare(before, path)


def test_an_empty_file_and_none_are_refused(before: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no answers"):
        s4convert.compare(write(tmp_path / "empty.jsonl"), before)
    with pytest.raises(StorageError, match=r"none\.jsonl"):
        s4convert.compare(before, tmp_path / "none.jsonl")


def test_another_conversation_is_told(before: Path, tmp_path: Path) -> None:
    lines = [answer(f"q{n}", 1.0, image=n < 4, conversation="chatml_direct") for n in range(10)]
    after = write(tmp_path / "after.jsonl", *lines)
    said = run_here("compare", before, after)
    assert said.stderr == (
        f"s4convert: {before} was asked by 'vicuna_v1' and {after} by 'chatml_direct': the prompt may be what makes "
        "the difference\n"
    )
