"""The error that is computed from moments is the mean squared change of the output over the same tokens."""

from __future__ import annotations

import numpy as np
import pytest

from s4convert.calibration.moments import Moments, mix_moments
from s4convert.checkpoint.dtypes import decode, encode
from s4convert.compensation import MODES
from s4convert.compensation.error import best_uniform_factor, head_gram, mix_error
from s4convert.errors import CompensationError
from tests.compensation.layers import example, weight_error
from tests.support.modes import MAPS

FROM_O = [mode for mode in MAPS if mode != "residual-transfer"]


@pytest.mark.parametrize("mode", MAPS)
def test_is_that_streamed_over_the_tokens(mode: str) -> None:
    case = example()
    mix = MODES[mode].fit(case.layer, case.moments, 1e-2)
    after = mix.apply_to_rows(case.output.astype(np.float32)).astype(np.float64)
    exact = case.output @ (mix.apply_to_heads(np.eye(24)).T)
    streamed = case.streamed_error(exact)
    assert mix_error(case.layer.weight_gram, case.moments, mix) == pytest.approx(streamed, rel=1e-10)
    assert weight_error(case.output, exact, case.moments) == pytest.approx(streamed, rel=1e-10)
    np.testing.assert_allclose(after, exact, atol=1e-5)


def test_of_none_and_scale_are_the_formulas_of_the_head_gram() -> None:
    case = example()
    pruned, kept = list(case.layer.pruned), list(case.layer.kept)
    gram = head_gram(case.layer.weight_gram, case.moments, 4)
    none, scale = (
        mix_error(case.layer.weight_gram, case.moments, MODES[mode].fit(case.layer, None, 0))
        for mode in ("none", "scale")
    )
    assert none == pytest.approx(gram[np.ix_(pruned, pruned)].sum(), rel=1e-12)
    outputs = [case.tokens[:, h * 4 : h * 4 + 4] @ case.output[:, h * 4 : h * 4 + 4].T for h in range(6)]
    for a in range(6):
        for b in range(6):
            assert gram[a, b] == pytest.approx((outputs[a] * outputs[b]).sum() / len(case.tokens), rel=1e-9, abs=1e-9)
    of_pruned, of_kept = sum(outputs[h] for h in pruned), sum(outputs[h] for h in kept)
    product, power = (of_pruned * of_kept).sum() / len(case.tokens), (of_kept**2).sum() / len(case.tokens)
    s = 6 / 4
    assert scale == pytest.approx(none - 2 * (s - 1) * product + (s - 1) ** 2 * power, rel=1e-6)
    assert best_uniform_factor(gram, case.layer) == pytest.approx(1 + product / power, rel=1e-12)


def test_the_best_uniform_factor_is_the_best() -> None:
    case = example(seed=3)
    best = MODES["uniform-ls"].fit(case.layer, case.moments, 0)
    error = mix_error(case.layer.weight_gram, case.moments, best)
    for factor in (0.9, 0.99, 1.01, 1.1):
        other = case.layer.mix(factor * float(best.factors[0]))
        assert mix_error(case.layer.weight_gram, case.moments, other) > error


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("mode", FROM_O)
def test_rounding_to_the_stored_dtype_hardly_adds_to_it(mode: str, dtype: str) -> None:
    case = example(head_dim=8, hidden_size=48)
    before = decode(encode(case.output, dtype), dtype).reshape(48, 48)
    mix = MODES[mode].fit(case.layer, case.moments, 1e-2)
    exact = mix.apply_to_rows(before)
    stored = decode(encode(exact, dtype), dtype).reshape(48, 48)
    before, exact, stored = (values.astype(np.float64) for values in (before, exact, stored))
    unrounded = weight_error(before, exact, case.moments)
    assert weight_error(before, stored, case.moments) == pytest.approx(unrounded, rel=0.02)


def test_text_and_image_tokens_count_as_the_weight_says() -> None:
    text, image = example(seed=1, num_tokens=50), example(seed=2, num_tokens=5000)
    for weight in (0.0, 0.25, 0.5, 1.0):
        mixed = mix_moments(text.moments, image.moments, image_weight=weight)
        after = np.zeros_like(text.output)
        wanted = (1 - weight) * text.streamed_error(after) + weight * text.streamed_error(after, image.tokens)
        assert weight_error(text.output, after, mixed) == pytest.approx(wanted, rel=1e-10)
        mean = (1 - weight) * text.tokens.mean(axis=0) + weight * image.tokens.mean(axis=0)
        np.testing.assert_allclose(mixed.mean, mean, atol=1e-12)
        assert mixed.num_tokens == 5050
    assert mix_moments(text.moments, None).num_tokens == 50
    assert mix_moments(None, image.moments).num_tokens == 5000


def test_moments_that_mean_nothing_are_refused() -> None:
    good = example().moments
    with pytest.raises(CompensationError, match="has shape"):
        Moments(good.second[:5], good.mean, 7)
    with pytest.raises(CompensationError, match="not float64"):
        Moments(good.second.astype(np.float32), good.mean, 7)
    with pytest.raises(CompensationError, match="no token"):
        Moments(good.second, good.mean, 0)
    with pytest.raises(CompensationError, match="NaN or infinity"):
        Moments(good.second * np.inf, good.mean, 7)
    with pytest.raises(CompensationError, match="not a share"):
        mix_moments(good, good, image_weight=1.5)
    with pytest.raises(CompensationError, match="neither of text nor of image"):
        mix_moments(None, None)
