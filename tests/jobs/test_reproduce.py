"""A conversion is made again from its manifest, or what is not the same is named."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

import s4convert
from s4convert.calibration.statistics import Statistics
from s4convert.demo import QUESTIONS
from s4convert.mask import HeadMask
from tests.conftest import MINI_LLAVA
from tests.support.command_line import run_here
from tests.support.disk import hidden_siblings
from tests.support.environments import in_llavas_environment
from tests.support.modes import MAPS
from tests.support.synthetic import Spec
from tests.test_torch_checkpoints import write_torch_checkpoint

pytestmark = in_llavas_environment

FILE = QUESTIONS / "questions.json"
DATA: dict[str, Any] = {"calibration": FILE, "images": QUESTIONS}
FITTED = ("uniform-ls", "head-ls", "least-squares")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory, converted: Path) -> Path:
    """Those of :func:`converted`, kept."""
    return converted.with_name("statistics")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini LLaVA by least squares on six samples, half of which judge the fit."""
    directory = tmp_path_factory.mktemp("conversions")
    mask = HeadMask(8, ((1, 5), (), (2,), (), (), (), (), ()))
    s4convert.convert(
        *(MINI_LLAVA, directory / "mini-llava-least-squares", mask),
        **DATA,
        compensation="least-squares",
        num_samples=6,
        holdout=0.5,
        image_weight=0.3,
        save_statistics=directory / "statistics",
        check_behaviour=False,
    )
    return directory / "mini-llava-least-squares"


def edit_manifest(directory: Path, **fields: object) -> None:
    path = directory / "s4convert.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("compensation", MAPS)
def test_every_mode_is_made_again(converted: Path, statistics: Path, tmp_path: Path, compensation: str) -> None:
    out, kept = tmp_path / "mini-llava-pruned", {"statistics": statistics} if compensation in FITTED else {}
    mask = HeadMask(8, ((1, 5), (), (2,), (), (), (), (), ()))
    s4convert.convert(MINI_LLAVA, out, mask, compensation=compensation, check_behaviour=False, **kept)
    outcome = run_here("reproduce", out, "--source", MINI_LLAVA, *(f"--statistics={path}" for path in kept.values()))
    assert outcome.exit_code == 0, outcome.stderr
    assert "model-00001-of-00002.safetensors  identical\n" in outcome.stdout
    assert outcome.stdout.endswith("verdict: OK, all 10 files are made again byte for byte\n")
    assert not hidden_siblings(out)


def test_the_data_is_run_again_as_it_was(converted: Path) -> None:
    made_again = s4convert.reproduce(converted, MINI_LLAVA, **DATA)
    assert "model-00002-of-00002.safetensors" in made_again.files
    assert made_again.differences == {}
    assert "README.md" not in made_again.files


def test_files_that_were_mixed_are_run_again_in_their_windows(tmp_path: Path) -> None:
    text, out, mask = tmp_path / "text.txt", tmp_path / "mini-llava-out", tmp_path / "mask.json"
    text.write_text("The boat went up the river. It was dark.\n\n" * 30)
    mask.write_text(json.dumps({"pruned_heads": {"0": [1, 5], "2": [2]}}))
    data = ("--calibration", FILE, "--calibration", text, "--images", QUESTIONS)
    outcome = run_here(MINI_LLAVA, out, "--mask", mask, *data, "--num-samples", 3, "--window", 40, "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    stated = json.loads((out / "s4convert.json").read_text())
    assert stated["compensation"] == "least-squares"  # the default, with data
    files = [(file["file"], file["samples"], file["window_tokens"]) for file in stated["calibration"]["files"]]
    assert files == [("questions.json", 3, 2048), ("text.txt", 3, 40)]
    again = run_here("reproduce", out, "--source", MINI_LLAVA, *data, "--json")
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["differences"] == {}
    other = run_here("reproduce", out, "--source", MINI_LLAVA, "--calibration", text)
    assert "is not the data of the fit, 'questions.json', 'text.txt', as its sha256 tells" in other.error


def test_shards_built_from_bin_files_are_built_again(tmp_path: Path) -> None:
    source = write_torch_checkpoint(tmp_path / "source", Spec())
    s4convert.convert(source, tmp_path / "out", HeadMask(2, ((1,), ())), shard_size=2_000, check_behaviour=False)
    assert len([name for name in s4convert.reproduce(tmp_path / "out", source).files if "-of-" in name]) > 1


def test_another_version_and_another_number_of_threads_are_named(converted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(converted, tmp_path / "out")
    stated = json.loads((out / "s4convert.json").read_text())
    calibration, versions = stated["calibration"] | {"threads": 99}, stated["versions"] | {"torch": "2.0.0"}
    edit_manifest(out, calibration=calibration, versions=versions)
    outcome = run_here("reproduce", out, "--source", MINI_LLAVA, "--calibration", FILE, "--images", QUESTIONS, "--json")
    differences = json.loads(outcome.stdout)["differences"]
    assert differences["torch"]["then"] == "2.0.0"
    assert differences["threads"]["then"] == 99
    assert set(differences) == {"torch", "threads"}


def test_what_comes_out_otherwise_is_named_with_the_version_that_differs(converted: Path, tmp_path: Path) -> None:
    """As if the older library had rounded otherwise: another compensation stands for that here."""
    out = shutil.copytree(converted, tmp_path / "out")
    stated = json.loads((out / "s4convert.json").read_text())
    edit_manifest(out, compensation="none", fitted={}, versions=stated["versions"] | {"numpy": "1.0.0"})
    outcome = run_here("reproduce", out, "--source", MINI_LLAVA)
    assert outcome.exit_code == 1
    assert "1 of 10 files are not made again byte for byte, the first is model-00001-of-00002" in outcome.error
    assert "not as it was then: numpy 1.0.0, now " in outcome.error
    assert not hidden_siblings(out)


def test_a_file_that_changed_since_is_named_before_any_work(converted: Path, tmp_path: Path) -> None:
    out = shutil.copytree(converted, tmp_path / "out")
    (out / "generation_config.json").write_text("{}")
    outcome = run_here("reproduce", out, "--source", MINI_LLAVA, "--calibration", FILE, "--images", QUESTIONS)
    assert outcome.exit_code == 1
    assert f"{out / 'generation_config.json'}: is not what s4convert.json says of it" in outcome.error


def test_other_data_is_refused(converted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("A text.")
    outcome = run_here("reproduce", converted, "--source", MINI_LLAVA, "--calibration", other)
    assert outcome.exit_code == 2
    assert f"{other}: is not the data of the fit, 'questions.json', as its sha256 tells" in outcome.error


def test_another_original_is_refused(converted: Path, mini_llava_as: Any, statistics: Path) -> None:
    other = mini_llava_as(torch.float32)
    outcome = run_here("reproduce", converted, "--source", other, "--statistics", statistics)
    assert outcome.exit_code == 2
    assert "is another model than" in outcome.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "was made from 'mini-llava'; say with --source where that is"),
        (("--source", MINI_LLAVA), "least-squares was fitted to 'questions.json'; give it with --calibration, or its"),
    ],
)
def test_what_is_missing_is_asked_for(converted: Path, options: tuple[object, ...], message: str) -> None:
    outcome = run_here("reproduce", converted, *options)
    assert outcome.exit_code == 2
    assert message in outcome.error


def test_a_checkpoint_without_a_manifest_cannot_be_made_again(tmp_path: Path) -> None:
    assert "has no s4convert.json that says how it was made" in run_here("reproduce", MINI_LLAVA).error


def test_data_for_a_mode_that_needs_none_is_refused(tmp_path: Path, mini_mask: HeadMask) -> None:
    s4convert.convert(MINI_LLAVA, tmp_path / "out", mini_mask, check_behaviour=False)
    outcome = run_here("reproduce", tmp_path / "out", "--source", MINI_LLAVA, "--calibration", FILE)
    assert "compensation scale is fitted to no data" in outcome.error


def test_moments_of_a_function_are_said_to_be_unknown(converted: Path, statistics: Path, tmp_path: Path) -> None:
    mask, kept = HeadMask(8, ((1, 5), (), (2,), (), (), (), (), ())), Statistics(statistics)
    s4convert.convert(
        *(MINI_LLAVA, tmp_path / "out", mask),
        compensation="head-ls",
        statistics=lambda layer: kept(layer),
        check_behaviour=False,
    )
    outcome = run_here("reproduce", tmp_path / "out", "--source", MINI_LLAVA)
    assert "head-ls was fitted to moments whose data s4convert.json does not name" in outcome.error


def test_the_origin_stands_in_manifest_and_card_and_is_inspected(converted: Path) -> None:
    stated, card = json.loads((converted / "s4convert.json").read_text()), (converted / "README.md").read_text()
    data = stated["calibration"]
    (file,) = data["files"]
    assert (file["file"], file["samples"], data["holdout"], data["image_weight"]) == ("questions.json", 6, 0.5, 0.3)
    assert data["text_tokens"] > data["image_tokens"] > 0
    assert {"python", "torch", "transformers", "numpy", "safetensors", "s4convert"} == set(stated["versions"])
    for said in (file["sha256"], f"text tokens {data['text_tokens']}", f"torch {stated['versions']['torch']}"):
        assert said in card
    seen = json.loads(run_here("inspect", converted, "--json").stdout)["made_from"]
    assert seen["fitted_to"] == data
    assert f"sha256 {file['sha256']}" in run_here("inspect", converted).stdout


def test_the_file_of_a_foreign_mask_is_named(tmp_path: Path) -> None:
    flags = [[1, 0, 0, 0, 0, 0, 0, 0]] * 8
    mask, out = tmp_path / "flags.json", tmp_path / "out"
    mask.write_text(json.dumps(flags))
    assert run_here(MINI_LLAVA, out, "--mask", mask, "--mask-polarity", "prune", "--no-verify").exit_code == 0
    file = json.loads((out / "s4convert.json").read_text())["mask_file"]
    assert (file["name"], file["sha256"]) == ("flags.json", sha256(mask.read_bytes()).hexdigest())
    assert "1 = pruned" in file["read_as"]
    assert file["sha256"] in (out / "README.md").read_text()
    assert file["sha256"] in run_here("inspect", out).stdout


def test_asked_and_realised_rates_stand_side_by_side_everywhere(tmp_path: Path) -> None:
    mask, out = tmp_path / "mask.json", tmp_path / "out"
    options = ("--metric", "magnitude", "--schedule", "uniform", "--rate", "0.3")
    made = run_here("mask", MINI_LLAVA, "-o", mask, *options)
    realised = "16 of 64 heads, a rate of 0.25; 0.3 was asked for"
    assert realised in made.stdout
    provenance = json.loads(mask.read_text())["provenance"]
    assert (provenance["rate"], provenance["realised_rate"]) == (0.3, 0.25)
    assert realised in run_here(MINI_LLAVA, out, "--mask", mask, "--dry-run").stdout
    assert realised in run_here(MINI_LLAVA, out, "--mask", mask, "--no-verify").stdout
    figures = {"pruned": 16, "heads": 64, "rate": 0.25, "asked_rate": 0.3}
    assert json.loads((out / "s4convert.json").read_text())["verification"]["heads"] == figures
    assert json.loads(run_here("verify", MINI_LLAVA, out, "--json").stdout)["heads"] == figures
    assert realised in (out / "README.md").read_text()
