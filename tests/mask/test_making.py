"""``s4convert mask --scores``: the file it writes, that the same scores give the same bytes, and what it refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import s4convert.mask
from s4convert import make_mask
from s4convert.checkpoint import Geometry
from s4convert.mask import HeadMask, HeadScores
from s4convert.mask.files import load_mask, load_scores
from s4convert.version import __version__
from tests.support.command_line import run, run_here

SCHEMA = json.loads((Path(s4convert.mask.__file__).parent / "mask.schema.json").read_text())
GEOMETRY = Geometry(32, 32, 8, 4, 128)
PROVENANCE = {
    "source": "llava-v1.5-7b",
    "metric": "energy",
    "seed": 7,
    "calibration_sha256": "ab" * 32,
    "residual_energy": [1.0] * 32,
    "tool_version": "0.0.1",
}


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    numbers = random.Random(4)
    rows = [[numbers.random() for _ in range(32)] for _ in range(32)]
    HeadScores(32, 32, rows, PROVENANCE).save(tmp_path / "scores.json")
    return tmp_path / "scores.json"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "mask.json"


@pytest.mark.parametrize(
    ("options", "total", "made_by"),
    [
        (["uniform", "--rate", "0.3"], 320, {"schedule": "uniform", "rate": 0.3}),
        (["bands:0-5:0,6-21:0.2,22-31:0.35"], 206, {"schedule": "bands:0-5:0,6-21:0.2,22-31:0.35"}),
        (["adaptive", "--rate", "0.3"], 307, {"schedule": "adaptive", "rate": 0.3}),
        (
            ["adaptive", "--rate", "0.15", "--protect", "0-5", "--protect-rate", "0.1"],
            153,
            {"schedule": "adaptive", "rate": 0.15, "protect": [0, 1, 2, 3, 4, 5], "protect_rate": 0.1},
        ),
        (
            ["global", "--rate", "0.3", "--protect", "31"],
            307,
            {"schedule": "global", "rate": 0.3, "protect": [31], "normalised": True},
        ),
        (
            ["uniform", "--rate", "0.25", "--granularity", "group", "--num-kv-heads", "8"],
            256,
            {"schedule": "uniform", "rate": 0.25, "granularity": "group", "num_kv_heads": 8},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_the_command_writes_a_native_mask_with_its_provenance(
    scores: Path, out: Path, options: list[str], total: int, made_by: dict[str, Any]
) -> None:
    outcome = run_here("mask", "--scores", scores, "-o", out, "--schedule", *options)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{total} of 1024 heads, a rate of " in outcome.stdout
    assert f"\nwritten: {out}\n" in outcome.stdout
    mask = load_mask(out, GEOMETRY)
    assert mask.num_pruned == total
    inherited = {name: value for name, value in PROVENANCE.items() if name != "residual_energy"}
    made = {"granularity": "head", "tool_version": __version__, "realised_rate": total / 1024}
    assert mask.saliency == tuple(tuple(float(f"{score:.4g}") for score in row) for row in load_scores(scores).scores)
    made["saliency"] = [[*row] for row in mask.saliency]
    assert mask.provenance == inherited | made | made_by
    jsonschema.validate(json.loads(out.read_text()), SCHEMA)


def test_the_same_scores_give_the_same_bytes(scores: Path, tmp_path: Path) -> None:
    options = ("--schedule", "global", "--rate", "0.3")
    for name, start in (("first.json", run), ("second.json", run_here)):
        assert start("mask", "--scores", scores, "-o", tmp_path / name, *options).exit_code == 0
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()


def test_the_command_prints_json_or_only_the_path(scores: Path, out: Path) -> None:
    common = ("mask", "--scores", scores, "-o", out, "--schedule", "uniform", "--rate", "0.3", "--force")
    assert run_here(*common, "-q").stdout == f"{out}\n"
    assert json.loads(run_here(*common, "--json").stdout) == {"out": str(out)} | json.loads(out.read_text())


REFUSED = {
    "no rate": (["--schedule", "uniform"], "--schedule uniform needs --rate"),
    "a rate for bands": (["--schedule", "bands:0-31:0.2", "--rate", "0.2"], "leave --rate out"),
    "no schedule": (["--rate", "0.2"], "Missing option '--schedule'"),
    "no kv heads": (
        ["--schedule", "uniform", "--rate", "0.2", "--granularity", "group"],
        "--granularity group needs --num-kv-heads",
    ),
    "a rate in percent": (["--schedule", "uniform", "--rate", "30%"], "rate '30%' is not a number from 0 to below 1"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_request_is_one_line_and_writes_nothing(
    scores: Path, out: Path, options: list[str], message: str
) -> None:
    outcome = run_here("mask", "--scores", scores, "-o", out, *options)
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert not out.exists()


def test_scores_that_are_missing_are_a_bad_request(tmp_path: Path, out: Path) -> None:
    outcome = run_here("mask", "--scores", tmp_path / "no.json", "-o", out, "--schedule", "uniform", "--rate", "0.2")
    assert (outcome.exit_code, outcome.error) == (2, f"{tmp_path / 'no.json'}: no such file")


def test_a_file_that_stands_there_is_replaced_with_force_only(scores: Path, out: Path) -> None:
    out.write_text("the only copy")
    common = ("mask", "--scores", scores, "-o", out, "--schedule", "uniform", "--rate", "0.3")
    outcome = run_here(*common)
    assert outcome.exit_code == 2
    assert "exists; choose another name, or replace it with --force" in outcome.error
    assert out.read_text() == "the only copy"
    assert run_here(*common, "--force").exit_code == 0
    assert load_mask(out, GEOMETRY).num_pruned == 320


def test_the_scores_themselves_are_never_replaced(scores: Path) -> None:
    before = scores.read_bytes()
    outcome = run_here("mask", "--scores", scores, "-o", scores, "--schedule", "uniform", "--rate", "0.3", "--force")
    assert outcome.exit_code == 2
    assert "is the scores file itself" in outcome.error
    assert scores.read_bytes() == before


def test_a_mask_made_by_a_library_call_is_the_commands(scores: Path, tmp_path: Path) -> None:
    mask = make_mask(None, tmp_path / "library.json", schedule="adaptive", rate=0.3, scores=scores).mask
    run_here("mask", "--scores", scores, "-o", tmp_path / "cli.json", "--schedule", "adaptive", "--rate", "0.3")
    assert (tmp_path / "library.json").read_bytes() == (tmp_path / "cli.json").read_bytes()
    assert load_mask(tmp_path / "cli.json", GEOMETRY) == mask


# --- the schema ---------------------------------------------------------------------------------------------


def test_the_schema_is_one_and_travels_with_the_package() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert "mask.schema.json" in (Path(__file__).parents[2] / "setup.cfg").read_text()


@pytest.mark.parametrize(
    "mask",
    [
        HeadMask(4, ((1, 2), (), (0,))),
        HeadMask(4, ((1, 2), ()), scale={0: 2}, provenance={"anything": [1, None]}),
        HeadMask(4, ((1, 2), (0,)), scale={0: 1.4545, 1: 1e-6}, provenance={}),
    ],
)
def test_the_schema_accepts_what_is_written(mask: HeadMask) -> None:
    jsonschema.validate(mask.to_json(), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "s4convert-mask/2"},
        {"num_layers": 0},
        {"num_heads": 4.5},
        {"pruned": {}},
        {"pruned": {"01": [1]}},
        {"pruned": {"0": [1, 1]}},
        {"pruned": {"0": [-1]}},
        {"pruned": {"0": ["1"]}},
        {"scale": None},
        {"scale": {"0": 0}},
        {"scales": {}},
        {"provenance": "me"},
        {"provenance": {"calibration_sha256": "ab"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_is_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(HeadMask(4, ((1, 2), (), (0,))).to_json() | change, SCHEMA)
