"""A distilled conversion: what it may change, how it is checked then and later, and what cannot be trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import s4convert
from benchmarks.mini.questions import write_scienceqa
from s4convert.calibration.answers import own_answers
from s4convert.calibration.samples import read_samples
from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from s4convert.errors import VerificationError
from s4convert.jobs.demo import Chat
from s4convert.mask import HeadMask
from s4convert.model.front_end import LETTER_INSTRUCTION
from s4convert.model.resident import ResidentModel
from s4convert.output.html_report import html_report
from tests.output.test_html_report import SCHEMA as MANIFEST_SCHEMA
from tests.support.command_line import run_here
from tests.support.environments import in_the_newest_environment

pytestmark = in_the_newest_environment

MASK = HeadMask(8, ((1, 5), (), (2,), (), (), (), (), (0, 3, 6)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=5, num_text=5, seed=5)
    return {"calibration": directory / "questions.json", "images": directory / "images"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> tuple[Path, s4convert.Report]:
    out = tmp_path_factory.mktemp("distilled") / "mini-llava-distilled"
    settings = {"steps": 6, "self_answers": True}
    return out, s4convert.convert(MINI_LLAVA, out, MASK, compensation="distill", **settings, **data)


def test_only_q_k_v_and_o_of_touched_layers_differ_and_pruned_heads_are_silent(
    converted: tuple[Path, s4convert.Report],
) -> None:
    out, report = converted
    before, after = Checkpoint.open(MINI_LLAVA), Checkpoint.open(out)
    pairs = ((tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    differing = {one.name for one, other in pairs if before.read_bytes(one) != after.read_bytes(other)}
    touched = {before.projection(layer, name, "weight") for layer in MASK.touched_layers for name in "qkvo"}
    assert differing == {part.tensor.name for part in touched if part is not None}
    for layer, pruned in enumerate(MASK.pruned):
        assert after.silent_heads(layer) == pruned
        for name in "qkv":
            rows = after.projection(layer, name, "weight")
            assert rows is not None
            by_head = after.read_rows(rows.tensor, rows.first, rows.count).reshape(8, -1)
            assert tuple(np.flatnonzero(~by_head.any(axis=1))) == pruned
    told = report.to_json()
    assert told["agreement"]["converted"]["kl"] < told["training"]["refit_kl"] < told["agreement"]["none"]["kl"]
    assert told["agreement"]["converted"]["kl"] == pytest.approx(told["training"]["kl"], rel=1e-3)
    assert "Training: 6 steps on q, k, v, o of kept heads, 8 samples; KL to" in (out / "README.md").read_text()
    assert max(row["own_error"] for row in told["behaviour"]["layers"]) < 1e-6
    manifest = json.loads((out / "s4convert.json").read_text())
    jsonschema.validate(manifest, MANIFEST_SCHEMA)
    best = manifest["training"]["best_step"]
    assert f"on held-out samples; step {best} was kept" in html_report(manifest, out)


def test_it_is_verified_later_from_the_two_directories_and_with_the_data_its_kl_again(
    converted: tuple[Path, s4convert.Report], data: dict[str, Any]
) -> None:
    out, report = converted
    without = run_here("verify", MINI_LLAVA, out)
    assert without.exit_code == 0, without.stderr
    assert "the fits of 3 layers are not checked against their data" in without.stdout
    again = s4convert.verify_conversion(MINI_LLAVA, out, **data)
    assert again.unproven_layers == ()
    assert again.to_json()["agreement"] == report.to_json()["agreement"]  # on the same samples


def test_without_its_manifest_it_is_seen_to_be_trained(
    converted: tuple[Path, s4convert.Report], tmp_path: Path
) -> None:
    out = shutil.copytree(converted[0], tmp_path / "out")
    (out / "s4convert.json").unlink()
    report = s4convert.verify_conversion(MINI_LLAVA, out)
    assert (report.mask.pruned, report.compensation) == (MASK.pruned, "distill")
    layers = report.outcome_json()["compensation"]["layers"]
    assert [list(row["others_moved"]) for row in layers] == [["q", "k", "v"]] * 3
    assert report.behaviour is not None
    assert max(row.own_error for row in report.behaviour.layers) < 1e-6


def test_it_is_made_again_byte_for_byte(converted: tuple[Path, s4convert.Report], data: dict[str, Any]) -> None:
    out, _ = converted
    assert s4convert.reproduce(out, MINI_LLAVA, **data).differences == {}
    outcome = run_here("reproduce", out, "--source", MINI_LLAVA)
    assert outcome.exit_code == 2
    assert "give it with --calibration" in outcome.error


def test_what_is_no_nearer_to_the_original_than_no_compensation_is_refused(
    converted: tuple[Path, s4convert.Report], data: dict[str, Any], tmp_path: Path
) -> None:
    """The claim of a training over the weights of ``none``."""
    out = tmp_path / "out"
    s4convert.convert(MINI_LLAVA, out, MASK, compensation="none", check_behaviour=False)
    own, claimed = (json.loads((directory / "s4convert.json").read_text()) for directory in (out, converted[0]))
    own |= {name: claimed[name] for name in ("compensation", "fitted", "training", "calibration")}
    (out / "s4convert.json").write_text(json.dumps(own))
    with pytest.raises(VerificationError, match="on held-out samples, its KL to the original is"):
        s4convert.verify_conversion(MINI_LLAVA, out, **data)


@pytest.mark.parametrize("projection", ["q", "o"])
def test_a_number_in_the_place_of_a_pruned_head_is_refused(
    converted: tuple[Path, s4convert.Report], tmp_path: Path, projection: str
) -> None:
    out = shutil.copytree(converted[0], tmp_path / "out")
    tensor = Checkpoint.open(out).projection(2, projection, "weight")
    assert tensor is not None
    at = tensor.tensor.entry.begin  # of head 2: its first row, or its first column
    at += 2 * 16 * (tensor.tensor.row_bytes if projection == "q" else 2)
    with (out / tensor.tensor.shard).open("r+b") as file:
        file.seek(at)
        file.write(b"\0\x3c")
    with pytest.raises(VerificationError, match=f"layers.2.self_attn.{projection}_proj.weight of layer 2 is not what"):
        s4convert.verify_conversion(MINI_LLAVA, out)


def test_own_answers_are_those_that_stock_generate_gives(data: dict[str, Any]) -> None:
    checkpoint, chat = Checkpoint.open(MINI_LLAVA), Chat(MINI_LLAVA)
    samples = read_samples(data["calibration"], data["images"], 3).samples
    answered = own_answers(checkpoint, ResidentModel(checkpoint), samples)
    for before, after in zip(samples, answered, strict=True):
        ((question, _),) = before.turns
        ((_, said),) = after.turns
        assert said is not None
        assert after.text == before.text.partition("ASSISTANT:")[0] + f"ASSISTANT: {said}</s>"
        image = None if before.image is None else Image.open(before.image).convert("RGB")
        assert said == chat.answer(question.removesuffix(f"\n{LETTER_INSTRUCTION}"), image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "3"), "--steps is about a training; give it with --compensate distill"),
        (("--compensate", "distill"), "give it with --calibration"),
        (
            ("--compensate", "distill", "--statistics", "s"),
            "is trained on calibration data; give it with --calib",
        ),
        (("--compensate", "distill", "--calibration", "q.json"), "--holdout 0.2 of 2 samples is none"),
        (("--compensate", "distill", "--calibration", "q.json", "--holdout", "0"), "--holdout 0 of 2 samples is"),
        (
            ("--compensate", "distill", "--calibration", "t.txt", "--holdout", "0.5", "--self-answers"),
            "the --calibration data has no questions to answer, only texts; leave --self-answers out",
        ),
        (("--compensate", "distill", "--calibration", "t.txt", "--learning-rate", "0"), "--learning-rate 0.0: give"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    tmp_path: Path, mini_mask_file: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text("The box has two.\nThe cup has nine.\n")
    Path("q.json").write_text('[{"id": "1", "text": "What?"}, {"id": "2", "text": "Who?"}]')
    outcome = run_here(MINI_LLAVA, "out", "--mask", mini_mask_file, *options)
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.json", "q.json", "t.txt"]


def test_a_sweep_trains_a_point_as_a_conversion_does(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The box has two.\n")
    swept = s4convert.sweep(
        *(MINI_LLAVA, tmp_path / "results"),
        text=tmp_path / "text.txt",
        rates="0.1",
        compensations="distill",
        calibration=data["calibration"],
        calibration_images=data["images"],
        convert_best=tmp_path / "mini-llava-best",
        best_by="perplexity",
        steps=2,
        train="o",
    )
    assert swept.report is not None
    training = swept.report.to_json()["training"]
    assert (training["steps"], training["train"], training["best_step"]) == (2, "o", 2)
    point = swept.to_json()["rows"][1]
    evaluated = s4convert.evaluate([tmp_path / "mini-llava-best"], text=tmp_path / "text.txt").to_json()
    (found,) = evaluated["checkpoints"].values()
    assert (point["compensation"], point["text_perplexity"]) == ("distill", found["text_perplexity"])
    (measured,) = (tmp_path / "results").rglob(f"{point['point']}.json")
    assert "2 steps on o of kept heads" in measured.read_text()
