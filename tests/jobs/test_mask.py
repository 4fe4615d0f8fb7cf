"""``s4convert mask CKPT``: from a checkpoint and calibration data to a mask file."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks.mini.questions import write_scienceqa
from s4convert.mask.files import load_scores
from tests.conftest import MINI_LLAVA
from tests.support.command_line import Outcome, run, run_here
from tests.support.warm_python import warm

UNIFORM = ("--schedule", "uniform", "--rate", "0.25")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=4, num_text=2, seed=1)
    return directory


def make(out: Path, questions: Path, *options: object, metric: str = "energy") -> Outcome:
    data = ("--calibration", questions / "questions.json", "--images", questions / "images")
    return run_here("mask", MINI_LLAVA, "-o", out, "--metric", metric, *data, *UNIFORM, *options)


@pytest.mark.parametrize("metric", ["cross-attention", "energy", "reconstruction"])
def test_a_mask_of_saliency_prunes_what_the_schedule_says(tmp_path: Path, questions: Path, metric: str) -> None:
    outcome = make(tmp_path / "mask.json", questions, metric=metric)
    assert outcome.exit_code == 0, outcome.stderr
    mask = json.loads((tmp_path / "mask.json").read_text())
    assert {layer: len(heads) for layer, heads in mask["pruned"].items()} == {str(layer): 2 for layer in range(8)}
    provenance = mask["provenance"]
    assert (provenance["metric"], provenance["schedule"], provenance["rate"]) == (metric, "uniform", 0.25)
    assert len(provenance["calibration"]["files"][0]["sha256"]) == 64
    assert str(questions) not in (tmp_path / "mask.json").read_text()


def test_the_same_command_gives_the_same_files_in_another_process(tmp_path: Path, questions: Path) -> None:
    files = {}
    there = partial(run, command=[warm("s4convert")])
    for name, run_somewhere in (("here", run_here), ("there", there)):
        out, scores = tmp_path / f"{name}.json", tmp_path / f"{name}-scores.json"
        data = ("--calibration", questions / "questions.json", "--images", questions / "images")
        command = ("mask", MINI_LLAVA, "-o", out, "--metric", "cross-attention", *data, *UNIFORM)
        assert run_somewhere(*command, "--save-scores", scores, "-q").exit_code == 0
        files[name] = (out.read_bytes(), scores.read_bytes())
    assert files["here"] == files["there"]


def test_saved_scores_give_the_same_mask_without_the_model(tmp_path: Path, questions: Path) -> None:
    scores = tmp_path / "scores.json"
    assert make(tmp_path / "mask.json", questions, "--save-scores", scores).exit_code == 0
    assert load_scores(scores).num_heads == 8
    again = run_here("mask", "--scores", scores, "-o", tmp_path / "again.json", *UNIFORM)
    assert again.exit_code == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "mask.json").read_bytes()


def test_global_divides_by_the_energy_of_the_residual_stream(tmp_path: Path, questions: Path) -> None:
    scores = tmp_path / "scores.json"
    assert make(tmp_path / "mask.json", questions, "--save-scores", scores).exit_code == 0
    energies = load_scores(scores).normalisers
    assert energies is not None and len(energies) == 8
    out = tmp_path / "global.json"
    assert run_here("mask", "--scores", scores, "-o", out, "--schedule", "global", "--rate", "0.25").exit_code == 0
    rows = load_scores(scores).scores
    cost = sorted((rows[layer][head] / energies[layer], layer, head) for layer in range(8) for head in range(8))
    cheapest = {(layer, head) for _, layer, head in cost[:16]}
    pruned = json.loads(out.read_text())["pruned"]
    assert {(int(layer), head) for layer, heads in pruned.items() for head in heads} == cheapest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-o", "m.json", *UNIFORM), "give a checkpoint to score, or --scores made before"),
        ((MINI_LLAVA, "-o", "m.json", "--scores", "s.json", *UNIFORM), "give a checkpoint to score, or --scores"),
        ((MINI_LLAVA, "-o", "m.json", *UNIFORM), "give it with --metric"),
        ((MINI_LLAVA, "-o", "m.json", "--metric", "energy", *UNIFORM), "needs calibration data; give --calibration"),
        (
            (MINI_LLAVA, "-o", "m.json", "--metric", "random", "--images", ".", *UNIFORM),
            "--images is about calibration data; give it with --calibration",
        ),
        (
            (MINI_LLAVA, "-o", "m.json", "--metric", "random", "--num-kv-heads", "2", *UNIFORM),
            "--num-kv-heads is for --scores; a checkpoint says it itself",
        ),
        (
            (MINI_LLAVA, "-o", "m.json", "--metric", "magnitude", "--images", "x", *UNIFORM),
            "give it with --calibration",
        ),
        ((MINI_LLAVA, "-o", "m.json", "--metric", "magnitude", "--save-scores", "m.json", *UNIFORM), "same name"),
        ((MINI_LLAVA, "-o", "m.json", "--metric", "random", "--schedule", "uniform"), "rate"),
        (
            ("--scores", "s.json", "-o", "m.json", *UNIFORM, "--calibration", "q.json"),
            "--calibration is for a checkpoint to score, and --scores were made before; leave one out",
        ),
        ((MINI_LLAVA, "-o", "m.npy", "--metric", "random", *UNIFORM), "m.npy: is written as JSON; give it a name that"),
        (
            (MINI_LLAVA, "-o", "m.json", "--metric", "random", *UNIFORM, "--save-scores", "s.pt"),
            "s.pt: is written as JSON; give it a name that ends in .json",
        ),
        ((MINI_LLAVA, "-o", "m.json", "--metric", "random", "--device", "tpu9", *UNIFORM), "there is no such device"),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run_here("mask", *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []
