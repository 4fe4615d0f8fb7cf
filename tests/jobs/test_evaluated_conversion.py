"""A conversion that asks IN and OUT questions says what is left, on the terminal, in the manifest and in the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest

import s4convert
from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.errors import CalibrationError, StorageError, UsageError
from s4convert.jobs import convert as job
from s4convert.jobs import evaluate as evaluation
from s4convert.mask import HeadMask
from tests.conftest import MINI_PRUNED
from tests.support.command_line import run_here
from tests.support.disk import hidden_siblings
from tests.support.environments import in_the_newest_environment

pytestmark = in_the_newest_environment

MASK = HeadMask(8, MINI_PRUNED)
FILE = QUESTIONS / "questions.json"
ASKED: dict[str, Any] = {"evaluate": FILE, "evaluate_images": QUESTIONS, "conversation": "vicuna_v1"}
FLAGS = ("--evaluate", FILE, "--evaluate-images", QUESTIONS, "--conversation", "vicuna_v1")


def convert(out: Path, **settings: Any) -> s4convert.Report:
    options = {"compensation": "none", "check_behaviour": False} | settings
    return s4convert.convert(MINI_LLAVA, out, MASK, **options)


def test_the_figures_are_those_of_evaluate_wherever_they_are_told(mini_mask_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = run_here(MINI_LLAVA, out, "--mask", mini_mask_file, "--compensate", "none", "--no-verify", *FLAGS)
    assert said.exit_code == 0, said.stderr
    asked = {"questions": FILE, "images": QUESTIONS, "conversation": "vicuna_v1"}
    evaluated = s4convert.evaluate([MINI_LLAVA, out], **asked)
    before, after = evaluated.evaluations.values()

    stated = json.loads((out / "s4convert.json").read_text())["evaluation"]
    share = stated["checkpoints"]["converted"]["accuracy"]
    assert f"converted {share['percent']}% of {share['count']} questions" in s4convert.inspect(out).to_text()
    assert stated["questions"]["file"] == "questions.json"
    assert stated["questions"]["count"] == 8
    assert stated["conversation"] == "vicuna_v1"
    for name, found in (("original", before), ("converted", after)):
        wanted = found.to_json() | {"speed": None}
        assert {figure: stated["checkpoints"][name][figure] for figure in wanted} == wanted
    change = after.difference(before)
    assert change is not None
    assert stated["checkpoints"]["converted"]["changed"]["accuracy"] == change.to_json()

    card = (out / "README.md").read_text().partition("## What is left")[2].partition("## Loading it")[0]
    assert "8 questions of `questions.json`" in card
    assert f"original   accuracy  {before.accuracy()}\n" in said.stdout
    assert f"converted  accuracy  {after.accuracy()}\n" in said.stdout
    assert f"converted, against original:\n  accuracy  {change}\n" in said.stdout
    assert f"| converted | {share['percent']:.1f} % ({share['low']:.1f} to {share['high']:.1f}) |" in card
    assert f"| change | {change.to_json()['points']:+.1f} points (" in card
    assert "answers/s" in said.stdout
    assert "answers/s" not in card
    assert str(tmp_path) not in card + json.dumps(stated)
    assert said.stdout.endswith(f"written: {out}\n")


def test_the_same_inputs_give_the_same_reports_and_what_stands_is_verified_and_made_again(tmp_path: Path) -> None:
    outs = [tmp_path / name / "out" for name in ("one", "two")]
    data: dict[str, Any] = {"calibration": FILE, "images": QUESTIONS}
    probe: dict[str, Any] = {"probe": FILE, "probe_images": QUESTIONS}
    measured = ASKED | data | probe | {"compensation": "least-squares", "check_behaviour": True}
    for out, jobs in zip(outs, (1, 4), strict=True):
        out.parent.mkdir()
        report = convert(out, **measured, report=out.parent / "report.html", jobs=jobs)
        assert report.evaluation is not None
        assert report.to_json()["evaluation"]["checkpoints"]["original"]["speed"] is not None
    for name in ("s4convert.json", "README.md", "../report.html"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    s4convert.verify_conversion(MINI_LLAVA, outs[0], check_behaviour=False)
    s4convert.reproduce(outs[0], source=MINI_LLAVA, **data)


def test_without_questions_nothing_is_said_of_them(tmp_path: Path) -> None:
    report = convert(tmp_path / "out")
    assert report.evaluation is None
    assert "evaluation" not in report.to_json()
    assert "evaluation" not in json.loads((tmp_path / "out" / "s4convert.json").read_text())
    assert "What is left of its answers was not measured." in (tmp_path / "out" / "README.md").read_text()


def broken_image(directory: Path) -> Path:
    shutil.copytree(QUESTIONS, directory / "images")
    (directory / "images" / "1.png").write_bytes(b"not a picture")
    return directory / "images"


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        (ASKED | {"evaluate": QUESTIONS / "none.json"}, StorageError, r"none\.json"),
        (ASKED | {"evaluate": MINI_LLAVA / "config.json"}, CalibrationError, r"config\.json"),
        (ASKED | {"evaluate_images": None}, UsageError, "say with `evaluate_images` which directory"),
        (ASKED | {"evaluate_images": MINI_LLAVA}, CalibrationError, r"there is no image .*1\.png; check `evaluate_im"),
        (ASKED | {"evaluate_images": broken_image}, CalibrationError, r"1\.png"),
        (ASKED | {"conversation": None}, UsageError, "has no chat template"),
        (ASKED | {"conversation": "v1"}, UsageError, "`conversation` 'v1' is none of"),
        (ASKED | {"device": "abacus"}, UsageError, "abacus"),
        ({"evaluate_images": QUESTIONS}, UsageError, "`evaluate_images` is about questions to ask; .* `evaluate`"),
        ({"conversation": "vicuna_v1"}, UsageError, "`conversation` is about questions to ask; .* `evaluate`"),
        ({"device": "cpu", "check_behaviour": False}, UsageError, "`device` is where models run, and here none does"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_first_byte_is_staged(
    settings: dict[str, Any], error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def staged(*_: object) -> NoReturn:
        raise AssertionError("staging began")

    monkeypatch.setattr(job, "open_staging", staged)
    given = {name: value(tmp_path) if callable(value) else value for name, value in settings.items()}
    with pytest.raises(error, match=said):
        convert(tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_reads_the_questions_and_asks_none(
    mini_mask_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (MINI_LLAVA, tmp_path / "out", "--mask", mini_mask_file, "--dry-run")
    monkeypatch.setattr(evaluation, "answers_of", None)
    assert run_here(*arguments, *FLAGS).exit_code == 0
    refused = run_here(*arguments, *FLAGS[:2], *FLAGS[4:])
    assert refused.exit_code == 2
    assert "say with --evaluate-images which directory" in refused.error


def test_an_evaluation_that_fails_leaves_nothing_at_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise StorageError("the disk is gone; get another")

    monkeypatch.setattr(evaluation, "answers_of", fail)
    with pytest.raises(StorageError, match="is gone"):
        convert(tmp_path / "out", **ASKED)
    assert not (tmp_path / "out").exists()
    assert hidden_siblings(tmp_path / "out") == []
