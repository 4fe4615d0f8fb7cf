"""An outside evaluator is run as it is, and its score is found or its fault told in a line."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from s4convert.errors import EvaluatorError, UsageError
from s4convert.study.outside import Evaluator


def command(code: str, *arguments: str) -> str:
    return shlex.join([sys.executable, "-c", f"import sys, pathlib\n{code}", *arguments])


WRITES = "(d := pathlib.Path(sys.argv[1]) / 'now').mkdir(); (d / 'results.json').write_text(sys.argv[2])"


def test_the_score_is_found_below_out_by_its_keys(tmp_path: Path) -> None:
    content = json.dumps({"results": {"scienceqa_img": {"exact_match,none": 0.75}}, "of": [1, "2"]})
    for keys, score in (("results/scienceqa_img/exact_match,none", 0.75), ("of/1", 2.0)):
        out = tmp_path / str(score)
        evaluator = Evaluator(command(WRITES, "{out}", content, "{checkpoint}"), score_json=f"*/results.json:{keys}")
        assert evaluator.score(tmp_path / "model", out) == score


def test_the_last_score_that_is_printed_counts_and_what_is_printed_is_kept(tmp_path: Path) -> None:
    evaluator = Evaluator(
        command("print('accuracy: 1 %'); print(f'{sys.argv[1]} accuracy: 71.5 %')", "{checkpoint}"),
        score_pattern=r"accuracy: ([\d.]+) %",
    )
    assert evaluator.score(tmp_path / "a {out} model", tmp_path / "out") == 71.5
    assert f"{tmp_path}/a {{out}} model accuracy" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("code", "place", "message"),
    [
        ("sys.exit(3)", {"score_pattern": "(x)"}, "exit code 3; see .*log.txt"),
        ("print('nothing')", {"score_pattern": "score (.)"}, "the score is None, which is no number"),
        ("print('score x')", {"score_pattern": "score (.)"}, "the score is 'x', which is no number"),
        ("pass", {"score_json": "*.json:a"}, r"0 files are called \*.json"),
        (WRITES, {"score_json": "now/results.json:b"}, "has nothing at b"),
        (WRITES, {"score_json": "now/results.json:a"}, "the score is True, which is no number"),
    ],
)
def test_a_fault_is_told(tmp_path: Path, code: str, place: dict[str, str], message: str) -> None:
    evaluator = Evaluator(command(code, "{out}", '{"a": true}', "{checkpoint}"), **place)
    with pytest.raises(EvaluatorError, match=message):
        evaluator.score(tmp_path / "model", tmp_path / "out")


def test_a_command_that_there_is_not_is_told(tmp_path: Path) -> None:
    with pytest.raises(EvaluatorError, match="no-such-command cannot be run"):
        Evaluator("no-such-command {checkpoint}", score_pattern="(x)").score(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("run {checkpoint}", {}, "say where the score of `eval_command` is"),
        ("run {checkpoint}", {"score_json": "a:b", "score_pattern": "(x)"}, "say where the score"),
        ("run model", {"score_pattern": "(x)"}, r"has no {checkpoint} in it"),
        ("run '{checkpoint}", {"score_pattern": "(x)"}, "mend its quotes"),
        ("run {checkpoint}", {"score_json": "results.json"}, "write it as FILE:KEY"),
        ("run {checkpoint}", {"score_pattern": "x"}, "has 0 groups"),
        ("run {checkpoint}", {"score_pattern": "("}, "mend it"),
    ],
)
def test_what_cannot_work_is_refused_at_once(text: str, place: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Evaluator(text, **place)


def test_another_command_makes_another_name() -> None:
    first, second = (Evaluator(f"{run} {{checkpoint}}", score_pattern="(x)") for run in "ab")
    assert len({one.name(point) for one in (first, second) for point in "pq"}) == 4
