"""What was made on another model, or is not what was asked for, is refused or told wherever the result is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import s4convert
from s4convert.calibration.statistics import CalibrationData, Statistics
from s4convert.checkpoint import Checkpoint
from s4convert.demo import QUESTIONS
from tests.conftest import MINI_LLAVA
from tests.support.command_line import Outcome, run_here
from tests.support.environments import in_llavas_environment

pytestmark = in_llavas_environment

FOREIGN = "the mask was made on another model, 'mini-llava', as the fingerprint tells"


@pytest.fixture
def other_model(mini_llava: Path, tmp_path: Path) -> Path:
    """The mini LLaVA, another layer 5 in it."""
    stored = Checkpoint.open(mini_llava).tensors["language_model.model.layers.5.mlp.down_proj.weight"]
    shard = mini_llava / stored.shard
    values = np.memmap(shard, "<f2", "r+", offset=stored.entry.begin, shape=stored.shape)
    values *= np.float16(1.5)
    values.flush()
    return mini_llava.rename(tmp_path / "other-llava")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the mini LLaVA."""
    directory = tmp_path_factory.mktemp("statistics") / "mini"
    data = CalibrationData(QUESTIONS / "questions.json", QUESTIONS, num_samples=4)
    Statistics(directory).gather(Checkpoint.open(MINI_LLAVA), data, range(8))
    return directory


def assert_told_everywhere(outcome: Outcome, out: Path, note: str) -> None:
    assert outcome.exit_code == 0, outcome.stderr
    assert f"s4convert: {note}\n" in outcome.stderr
    assert f"note: {note}\n" in outcome.stdout
    assert note in (out / "README.md").read_text()
    assert note in json.loads((out / "s4convert.json").read_text())["verification"]["notes"]


def test_a_mask_of_another_model_is_told_everywhere(other_model: Path, tmp_path: Path) -> None:
    mask, out = tmp_path / "mask.json", tmp_path / "out"
    s4convert.make_mask(MINI_LLAVA, mask, metric="magnitude", schedule="uniform", rate=0.25)
    assert_told_everywhere(run_here(other_model, out, "--mask", mask), out, FOREIGN)
    verified = run_here("verify", other_model, out, "--json")
    assert json.loads(verified.stdout)["notes"] == [FOREIGN]


def test_scores_of_another_model_are_told_as_well(other_model: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.json"
    s4convert.make_mask(MINI_LLAVA, metric="magnitude", schedule="uniform", rate=0.25).scores.save(scores)
    report = s4convert.convert(
        *(other_model, tmp_path / "out", scores), schedule="uniform", rate=0.25, check_behaviour=False
    )
    assert report.notes == (FOREIGN,)


def test_a_mask_of_the_same_model_under_another_name_is_none_of_another(mini_llava: Path, tmp_path: Path) -> None:
    made = s4convert.make_mask(MINI_LLAVA, metric="magnitude", schedule="uniform", rate=0.25)
    source = mini_llava.rename(tmp_path / "renamed")
    report = s4convert.convert(source, tmp_path / "out", made.mask, check_behaviour=False)
    assert report.notes == ()
    assert "notes" not in report.to_json()


@pytest.mark.parametrize("compensation", ["least-squares", "scale"])
def test_statistics_of_another_model_are_refused(
    other_model: Path, tmp_path: Path, mini_mask_file: Path, statistics: Path, compensation: str
) -> None:
    out = tmp_path / "out"
    arguments = (other_model, out, "--mask", mini_mask_file, "--statistics", statistics, "--compensate", compensation)
    refused = run_here(*arguments)
    assert refused.exit_code == 2
    assert "was gathered on another model ('mini-llava'), as the fingerprint tells" in refused.error
    assert refused.error.endswith("or insist with --foreign-statistics")
    assert not out.exists()
    note = "the statistics are of another model, 'mini-llava', as the fingerprint tells"
    assert_told_everywhere(run_here(*arguments, "--foreign-statistics"), out, note)


def test_verify_refuses_statistics_of_another_model(
    other_model: Path, tmp_path: Path, mini_mask_file: Path, statistics: Path
) -> None:
    out = tmp_path / "out"
    run_here(other_model, out, "--mask", mini_mask_file, "--no-verify")
    assert run_here("verify", other_model, out, "--statistics", statistics).exit_code == 2


def test_verify_fits_again_with_the_image_weight_of_the_fit(
    tmp_path: Path, mini_mask_file: Path, statistics: Path
) -> None:
    out, fit = tmp_path / "out", ("--statistics", statistics, "--image-weight", "0.1")
    made = run_here(MINI_LLAVA, out, "--mask", mini_mask_file, "--compensate", "least-squares", "--no-verify", *fit)
    assert made.exit_code == 0, made.stderr
    assert run_here("verify", MINI_LLAVA, out, *fit).exit_code == 0
    assert run_here("verify", MINI_LLAVA, out, "--statistics", statistics).exit_code == 1


@pytest.mark.parametrize("option", [("--foreign-statistics",), ("--image-weight", "0.1")])
def test_what_is_about_statistics_needs_some(mini_llava: Path, option: tuple[str, ...]) -> None:
    outcome = run_here("verify", MINI_LLAVA, mini_llava, *option)
    assert outcome.exit_code == 2
    assert outcome.error == f"{option[0]} is about --statistics; give that as well, or leave it out"


def test_statistics_that_do_not_say_their_model_are_refused(
    tmp_path: Path, mini_mask_file: Path, statistics: Path
) -> None:
    description = json.loads((statistics / "statistics.json").read_text())
    assert description.pop("fingerprint") == Checkpoint.open(MINI_LLAVA).fingerprint
    old = tmp_path / "old"
    old.mkdir()
    (old / "statistics.json").write_text(json.dumps(description))
    outcome = run_here(MINI_LLAVA, tmp_path / "out", "--mask", mini_mask_file, "--statistics", old)
    assert outcome.exit_code == 2
    assert "insist with --foreign-statistics" in outcome.error


@pytest.mark.parametrize(
    ("rate", "note"),
    [
        (0.25, None),
        (0.3, "a rate of 0.3 was asked for; whole heads make 0.25, 16 of 64"),
        (0.15, "a rate of 0.15 was asked for; whole heads make 0.125, 8 of 64"),
        (0.6, "the mask prunes more than half of the heads, 40 of 64; is its polarity right?"),
    ],
)
def test_a_rate_that_whole_heads_do_not_make_is_told(tmp_path: Path, rate: float, note: str | None) -> None:
    made = s4convert.make_mask(MINI_LLAVA, metric="magnitude", schedule="uniform", rate=rate)
    report = s4convert.convert(MINI_LLAVA, tmp_path / "out", made.mask, check_behaviour=False)
    assert report.notes == (() if note is None else (note,))
