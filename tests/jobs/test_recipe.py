"""Without a mask, one is made by a recipe: what is wrong is refused before scores take their time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.mini.questions import write_scienceqa
from s4convert import convert, plan_conversion, verify_conversion
from s4convert.demo import MINI_LLAVA
from s4convert.errors import S4ConvertError
from s4convert.jobs import recipe
from s4convert.jobs.mask import make_mask
from tests.support.command_line import run_here
from tests.support.environments import in_llavas_environment

pytestmark = in_llavas_environment


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("data")
    write_scienceqa(directory, num_image=2, num_text=3)
    return {"calibration": directory / "questions.json", "images": directory / "images"}


def test_the_mask_is_that_of_the_metric_fisher_under_global_and_is_kept(tmp_path: Path, data: dict[str, Any]) -> None:
    by_hand = make_mask(MINI_LLAVA, metric="fisher", schedule="global", rate="0.3", **data).mask
    options = [word for name, value in data.items() for word in (f"--{name}", value)]
    done = run_here(MINI_LLAVA, tmp_path / "out", "--rate", "0.3", *options, "--save-mask", tmp_path / "mask.json")
    assert done.exit_code == 0, done.stderr
    kept = json.loads((tmp_path / "mask.json").read_text())
    assert kept["pruned"] == by_hand.to_json()["pruned"]
    manifest = json.loads((tmp_path / "out" / "s4convert.json").read_text())
    assert manifest["mask"]["provenance"]["recipe"] == "fast"
    assert manifest["compensation"] == "least-squares"
    assert verify_conversion(MINI_LLAVA, tmp_path / "out", check_behaviour=False).mask.pruned == by_hand.pruned


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rate": None}, "give a `mask`; or a `rate` and `calibration` data"),
        ({"calibration": None, "images": None}, "on `calibration` data"),
        ({"rate": "0.001"}, "of 64 heads is none"),
        ({"recipe": "slow"}, "`recipe` 'slow' is none of"),
        ({"mask_polarity": "keep"}, "`mask_polarity` is about a mask file"),
        ({"save_mask": "mask.txt"}, "json"),
        ({"mask": "mask.json", "recipe": "fast"}, "`recipe` is about a mask to be made"),
        ({"compensation": "similar"}, "`compensation` 'similar' is none of"),
        ({"images": None}, "`images`"),
    ],
)
def test_what_is_wrong_is_refused_before_the_model_runs(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(recipe, "make_mask", lambda *_, **__: pytest.fail("the model was run"))
    with pytest.raises(S4ConvertError, match=message):
        convert(MINI_LLAVA, tmp_path / "out", **{"rate": "0.3", **data, **changed})
    assert list(tmp_path.iterdir()) == []


def test_what_stands_at_out_is_refused_before_the_model_runs(
    tmp_path: Path, data: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "make_mask", lambda *_, **__: pytest.fail("the model was run"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(S4ConvertError, match="out"):
        convert(MINI_LLAVA, tmp_path / "out", rate="0.3", **data)


def test_a_plan_without_a_mask_is_of_the_mask_that_would_be_made(tmp_path: Path, data: dict[str, Any]) -> None:
    planned = plan_conversion(MINI_LLAVA, tmp_path / "out", rate="0.3", **data)
    assert planned.mask.num_pruned == 19
    assert list(tmp_path.iterdir()) == []
