"""On the trained mini LLaVA, by stock code: least squares makes up for most of what pruning does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import s4convert
from s4convert import ConvertOptions, make_mask
from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.checkpoint import Checkpoint
from s4convert.compensation import MomentsSource
from tests.compensation.layers import weight_error
from tests.compensation.stock_moments import mini_llava as load
from tests.compensation.stock_moments import mini_samples, output_projection_inputs
from tests.conftest import MINI_LLAVA
from tests.support.environments import in_the_newest_environment
from tests.support.modes import MAPS

pytestmark = in_the_newest_environment

MASK = make_mask(MINI_LLAVA, metric="magnitude", schedule="uniform", rate=0.25).mask


@pytest.fixture(scope="module")
def moments() -> MomentsSource:
    """Over 40 questions, with 10 others held out."""
    model = load(MINI_LLAVA)
    train, held_out = (
        output_projection_inputs(model, mini_samples(MINI_LLAVA, count, seed)) for count, seed in ((20, 1), (5, 2))
    )
    table = [LayerMoments(Moments.of(a), Moments.of(b)) for a, b in zip(train, held_out, strict=True)]
    return table.__getitem__


@pytest.mark.parametrize("mode", MAPS)
def test_every_compensation_passes_verification(tmp_path: Path, moments: MomentsSource, mode: str) -> None:
    report = s4convert.convert(MINI_LLAVA, tmp_path / "out", MASK, compensation=mode, statistics=moments)
    assert report.behaviour is not None
    assert sorted(report.figures) == list(range(8))
    chosen = {fit.choice.mode for fit in report.figures.values()}
    assert chosen == {mode}
    for fit in report.figures.values():
        if mode in ("uniform-ls", "head-ls", "least-squares"):
            assert fit.train.fit <= min(fit.train.none, fit.train.scale) * (1 + 1e-6)
    if mode == "residual-transfer":
        s4convert.verify_conversion(MINI_LLAVA, tmp_path / "out")


def test_least_squares_is_nearer_to_the_original_than_any_simpler_mode(tmp_path: Path, moments: MomentsSource) -> None:
    """Hidden states on questions that no fit has seen, layer by layer and in the mean over layers."""
    samples = mini_samples(MINI_LLAVA, 4, 3)
    errors = {}
    for mode in (None, "none", "scale", "head-ls", "least-squares"):
        path = MINI_LLAVA
        if mode is not None:
            path = tmp_path / mode
            s4convert.convert(MINI_LLAVA, path, MASK, compensation=mode, statistics=moments, check_behaviour=False)
        model = load(path)
        with torch.inference_mode():
            states = [model(**sample, output_hidden_states=True).hidden_states[1:] for sample in samples]
        by_layer = [torch.cat([sample[layer].flatten() for sample in states]).double() for layer in range(8)]
        if mode is None:
            original = by_layer
        else:
            errors[mode] = [float((a - b).norm() / b.norm()) for a, b in zip(by_layer, original, strict=True)]
    assert all(least < none for least, none in zip(errors["least-squares"], errors["none"], strict=True))
    means = {mode: np.mean(figures) for mode, figures in errors.items()}
    assert means["least-squares"] <= 0.8 * min(means["none"], means["scale"], means["head-ls"])


def test_least_squares_halves_the_held_out_error_of_no_compensation(tmp_path: Path, moments: MomentsSource) -> None:
    options = ConvertOptions(compensation="least-squares", statistics=moments, check_behaviour=False)
    report = s4convert.convert(MINI_LLAVA, tmp_path / "out", MASK, options)
    held_out = [fit.held_out for fit in report.figures.values()]
    assert np.mean([errors.fit / errors.none for errors in held_out if errors is not None]) <= 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_the_stored_dtype_hardly_adds_to_the_error(
    mini_llava_as: Callable[..., Path], tmp_path: Path, moments: MomentsSource, dtype: torch.dtype
) -> None:
    source = mini_llava_as(dtype)
    options = ConvertOptions(compensation="least-squares", statistics=moments, check_behaviour=False)
    report = s4convert.convert(source, tmp_path / "out", MASK, options)
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "out")
    for layer, fit in report.figures.items():
        stored = weight_error(
            before.read_rows(before.output_projection(layer)).astype(np.float64),
            after.read_rows(after.output_projection(layer)).astype(np.float64),
            moments(layer).train,
        )
        assert stored == pytest.approx(fit.train.fit, rel=0.02)
