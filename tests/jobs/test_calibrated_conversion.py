"""Compensations fitted to calibration data, from the command line to what stands in OUT."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import s4convert
from benchmarks.mini.questions import write_scienceqa
from s4convert.calibration.inputs import make_inputs
from s4convert.calibration.moments import LayerMoments
from s4convert.calibration.samples import read_samples
from s4convert.calibration.statistics import CalibrationData, Statistics
from s4convert.checkpoint import Checkpoint
from s4convert.mask import HeadMask
from s4convert.model.decoder import LayerDecoder
from tests.conftest import MINI_LLAVA
from tests.support import seams
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests
from tests.support.environments import in_llavas_environment
from tests.support.forks import assert_all_was_left, assert_nothing_or_all_was_left, in_forked_children
from tests.support.modes import MAPS
from tests.support.warm_python import warm


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=15, num_text=15, seed=3)
    return directory


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory, questions: Path) -> Path:
    directory = tmp_path_factory.mktemp("statistics") / "mini"
    data = CalibrationData(questions / "questions.json", questions / "images")
    Statistics(directory).gather(Checkpoint.open(MINI_LLAVA), data, range(8))
    return directory


def convert(out: Path, mask: Path, *options: object) -> Outcome:
    return run_here(MINI_LLAVA, out, "--mask", mask, *options)


def calibration(questions: Path) -> tuple[object, ...]:
    return ("--calibration", questions / "questions.json", "--images", questions / "images")


def test_statistics_can_be_read_by_whom_the_umask_lets(statistics: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    files = list(statistics.iterdir())
    assert len(files) == 9
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~umask}


def test_statistics_of_a_run_that_was_killed_are_gathered_anew(tmp_path: Path) -> None:
    for name in (".s4convert-1-unfinished", "layer-00000.safetensors"):
        (tmp_path / name).write_text("half")
    kept = Statistics(tmp_path)
    kept.check_new()
    (tmp_path / "text.txt").write_text("The box has two.\n")
    kept.gather(Checkpoint.open(MINI_LLAVA), CalibrationData(tmp_path / "text.txt", None, holdout=0), [0])
    assert {path.name for path in tmp_path.iterdir()} == {"statistics.json", "layer-00000.safetensors", "text.txt"}
    assert kept(0).train.num_tokens > 0


def test_moments_are_those_of_the_stored_activations(statistics: Path, questions: Path) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    inputs = make_inputs(checkpoint, read_samples(questions / "questions.json", questions / "images").samples)
    held_out = [number % 5 == 4 for number in range(30)]  # a fifth of them, spread evenly
    decoder = LayerDecoder(checkpoint)
    decoder.load(checkpoint, 0)
    for part, chosen in (("train", False), ("held_out", True)):
        seen: list[torch.Tensor] = []

        def keep(heads: torch.Tensor, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(heads[0].double())
            return heads

        own = [sample for sample, out in zip(inputs, held_out, strict=True) if out is chosen]
        for sample in own:
            decoder.forward(sample.hidden, keep)
        heads = torch.cat(seen).numpy()
        is_image = torch.cat([sample.is_image for sample in own]).numpy()
        expected = sum(
            0.5 * heads[is_image == image].T @ heads[is_image == image] / (is_image == image).sum()
            for image in (False, True)
        )
        found = getattr(Statistics(statistics)(0), part)
        assert found.num_tokens == len(is_image)
        # Products of padded batches round otherwise than those of single samples.
        np.testing.assert_allclose(found.second, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


def test_the_image_weight_says_how_much_image_tokens_count(
    tmp_path: Path, mini_mask_file: Path, statistics: Path
) -> None:
    only_image, only_text = (Statistics(statistics, image_weight=weight)(2).train.second for weight in (1.0, 0.0))
    mixed = Statistics(statistics, image_weight=0.25)(2).train.second
    np.testing.assert_allclose(mixed, 0.25 * only_image + 0.75 * only_text, rtol=1e-12)
    outs = [tmp_path / name for name in ("even", "text")]
    for out, options in zip(outs, ((), ("--image-weight", "0.1")), strict=True):
        fit = ("--compensate", "least-squares", "--no-verify", "--statistics", statistics, *options)
        assert convert(out, mini_mask_file, *fit).exit_code == 0
    even, text = (Checkpoint.open(out) for out in outs)
    output = even.output_projection(2)
    assert (even.read_rows(output) != text.read_rows(text.output_projection(2))).any()


def test_least_squares_is_fitted_and_its_errors_are_reported(
    tmp_path: Path, mini_mask_file: Path, questions: Path
) -> None:
    options = ("--compensate", "least-squares", *calibration(questions), "--json")
    outcome = convert(tmp_path / "out", mini_mask_file, *options)
    assert outcome.exit_code == 0, outcome.stderr
    layers = json.loads(outcome.stdout)["compensation"]
    assert set(layers) == {"2", "4", "5", "7"}
    for fit in layers.values():
        assert fit["error"]["fit"] < fit["error"]["none"]
        assert fit["held_out_error"]["fit"] < fit["held_out_error"]["none"]
        assert fit["stored_error"] == pytest.approx(fit["error"]["fit"], rel=0.02)  # fp16 rounds little
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.json", "out"]
    assert run_here("verify", MINI_LLAVA, tmp_path / "out").exit_code == 0


def test_kept_statistics_give_the_same_conversion_without_a_second_pass(
    tmp_path: Path, mini_mask_file: Path, questions: Path
) -> None:
    head_ls, kept = ("--compensate", "head-ls", "--no-verify", "--no-card"), tmp_path / "kept"
    first = convert(tmp_path / "first", mini_mask_file, *head_ls, *calibration(questions), "--save-statistics", kept)
    assert first.exit_code == 0, first.stderr
    second = convert(tmp_path / "second", mini_mask_file, *head_ls, "--statistics", kept)
    assert second.exit_code == 0, second.stderr
    assert digests(tmp_path / "first") == digests(tmp_path / "second")


@pytest.mark.parametrize("held_out", [True, False], ids=["held-out tokens", "no held-out tokens"])
@pytest.mark.parametrize("mode", MAPS)
def test_the_map_of_each_layer_is_fitted_once(
    tmp_path: Path, mini_mask: HeadMask, statistics: Path, monkeypatch: pytest.MonkeyPatch, mode: str, held_out: bool
) -> None:
    measured = Statistics(statistics)

    def moments(layer: int) -> LayerMoments:
        return measured(layer) if held_out else LayerMoments(measured(layer).train)

    assert (moments(2).held_out is not None) == held_out
    fitted = seams.fitted_layers(monkeypatch)
    # The hidden states are checked with one of each kind: a check must not fit anew.
    check_behaviour = held_out and mode in ("head-ls", "least-squares", "residual-transfer")
    options = {"compensation": mode, "check_behaviour": check_behaviour, "card": False}
    s4convert.convert(MINI_LLAVA, tmp_path / "out", mini_mask, statistics=moments, **options)
    assert fitted == list(mini_mask.touched_layers)


@in_llavas_environment
def test_a_kill_of_a_calibrated_conversion_leaves_nothing_beside_out(
    tmp_path: Path, mini_mask_file: Path, questions: Path
) -> None:
    out = tmp_path / "out"
    options = {"compensation": "least-squares", "num_samples": 2, "card": False}
    options |= {"calibration": str(questions / "questions.json"), "images": str(questions / "images")}
    s4convert.convert(MINI_LLAVA, out, mini_mask_file, check_behaviour=False, **options)
    expected = digests(out)
    shutil.rmtree(out)
    what = {"killed_at_moments": {"moments": 5}, "killed_behind_the_commit": {}}
    options["python"] = warm("python")
    at_moments, behind_the_commit = in_forked_children(MINI_LLAVA, out, mini_mask_file, what, **options)
    assert len(at_moments) == 5
    assert_nothing_or_all_was_left(at_moments, expected)
    assert len(behind_the_commit) > 2
    for entry in behind_the_commit:
        assert_all_was_left(entry, expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.json"]


@pytest.mark.parametrize(
    ("options", "exit_code", "message"),
    [
        (("--compensate", "least-squares"), 2, "give it with --calibration"),
        (("--images", "x"), 2, "--images is about calibration data; give it with --calibration"),
        (("--save-statistics", "x"), 2, "--save-statistics is about calibration data"),
        (("--image-weight", "0.1"), 2, "--image-weight is about calibration data; give it with --calibration"),
        (("--statistics", "s", "--image-weight", "1.5"), 2, "--image-weight 1.5: give a share from 0 to 1"),
        (("--statistics", "s", "--device", "abacus"), 2, "--device abacus"),
        (("--calibration", "nowhere.json"), 3, "nowhere.json"),
        (("--statistics", "nowhere"), 2, "nowhere: no such directory; give a directory that --save-statistics made"),
        (("--statistics", "."), 2, "has no statistics.json, so it holds no statistics; give a directory that"),
        (("--calibration", "q.json", "--statistics", "s"), 2, "one of the two"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_written(
    tmp_path: Path, mini_mask_file: Path, options: tuple[str, ...], exit_code: int, message: str
) -> None:
    outcome = convert(tmp_path / "out", mini_mask_file, *options)
    assert outcome.exit_code == exit_code
    assert message in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["mask.json"]


def test_a_holdout_of_everything_is_refused(tmp_path: Path, mini_mask_file: Path, questions: Path) -> None:
    options = ("--compensate", "least-squares", *calibration(questions), "--holdout", "1")
    outcome = convert(tmp_path / "out", mini_mask_file, *options)
    assert outcome.exit_code == 2
    assert "--holdout 1.0: give a share from 0 to below 1" in outcome.error


def test_statistics_of_another_geometry_are_refused(tmp_path: Path, mini_mask_file: Path, statistics: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    content = json.loads((statistics / "statistics.json").read_text())
    (other / "statistics.json").write_text(json.dumps(content | {"head_dim": 64}))
    outcome = convert(tmp_path / "out", mini_mask_file, "--compensate", "least-squares", "--statistics", other)
    assert outcome.exit_code == 2
    assert "head_dim is 64, but this checkpoint's is 16; gather statistics of this one" in outcome.error
