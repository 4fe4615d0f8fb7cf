"""The least-squares fits are what their equations say: each oracle by a way of its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s4convert.calibration.moments import Moments
from s4convert.compensation import MODES, HeadMix
from s4convert.compensation.error import mix_error
from s4convert.compensation.least_squares import fit_transfer, least_squares, too_few_tokens
from s4convert.errors import CompensationError
from tests.compensation.layers import Example, example, make_layer

NEARLY_NONE = 1e-9  # a damping that does not show


def transfer_of(mix: HeadMix) -> np.ndarray:
    assert mix.transfer is not None
    return mix.transfer


def folded(case: Example, mix: HeadMix) -> np.ndarray:
    """W T in float64."""
    weight: np.ndarray = case.output @ mix.apply_to_heads(np.eye(case.output.shape[1])).T
    return weight


def error_of(case: Example, mode: str, damping: float = NEARLY_NONE) -> float:
    return mix_error(case.layer.weight_gram, case.moments, MODES[mode].fit(case.layer, case.moments, damping))


@st.composite
def examples(draw: st.DrawFn) -> Example:
    num_heads = draw(st.integers(2, 6))
    pruned = draw(st.sets(st.integers(0, num_heads - 1), min_size=1, max_size=num_heads - 1))
    head_dim = draw(st.integers(1, 5))
    return example(
        tuple(sorted(pruned)),
        num_heads=num_heads,
        head_dim=head_dim,
        hidden_size=draw(st.integers(1, 12)),
        num_tokens=draw(st.integers(4, 30)) * num_heads * head_dim,
        rank=draw(st.integers(1, num_heads * head_dim)),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@settings(max_examples=60, deadline=None)
@given(examples())
def test_each_mode_is_at_least_as_good_as_those_it_contains(case: Example) -> None:
    none, scale, uniform, by_head, least = (
        error_of(case, mode) for mode in ("none", "scale", "uniform-ls", "head-ls", "least-squares")
    )
    slack = 1e-6 * none  # factors are float32
    assert least <= by_head + slack
    assert by_head <= uniform + slack
    assert uniform <= min(none, scale) + slack


@settings(max_examples=60, deadline=None)
@given(examples(), st.sampled_from([1e-4, 1e-2, 1.0, 100.0]))
def test_solves_the_normal_equations(case: Example, damping: float) -> None:
    second, kept, pruned = case.moments.second, case.layer.kept_columns, case.layer.pruned_columns
    transfer = transfer_of(least_squares(case.layer, case.moments, damping))
    ridge = damping * np.mean(np.diag(second)[kept])
    residual = transfer @ (second[np.ix_(kept, kept)] + ridge * np.eye(len(kept))) - second[np.ix_(pruned, kept)]
    assert np.abs(residual).max() <= 1e-10 * max(1.0, np.abs(second).max())


@settings(max_examples=40, deadline=None)
@given(examples())
def test_is_the_block_update_of_the_optimal_brain_surgeon(case: Example) -> None:
    second, pruned = case.moments.second, case.layer.pruned_columns
    damping = 1e-2
    damped = second + damping * np.mean(np.diag(second)[case.layer.kept_columns]) * np.eye(len(second))
    inverse = np.linalg.inv(damped)
    update = np.linalg.inv(inverse[np.ix_(pruned, pruned)]) @ inverse[pruned]
    surgeon = case.output - case.output[:, pruned] @ update
    found = folded(case, least_squares(case.layer, case.moments, damping))
    np.testing.assert_allclose(found, surgeon, atol=1e-8 * np.abs(case.output).max())


@settings(max_examples=60, deadline=None)
@given(examples())
def test_damping_makes_it_worse_and_worse_up_to_no_compensation(case: Example) -> None:
    errors = [error_of(case, "least-squares", damping) for damping in (1e-6, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e3, 1e9)]
    none = error_of(case, "none")
    assert all(less <= more * (1 + 1e-9) + 1e-12 * none for less, more in pairwise(errors))
    assert max(errors) <= none * (1 + 1e-9)
    assert errors[-1] == pytest.approx(none, rel=1e-5)
    assert np.abs(transfer_of(least_squares(case.layer, case.moments, 1e12))).max() < 1e-9


def test_pruned_heads_that_are_a_mix_of_the_kept_ones_are_made_up_for_wholly() -> None:
    case = example((1, 3))
    generator = np.random.Generator(np.random.PCG64(9))
    mixing = generator.normal(0, 1, (8, 16))
    tokens = generator.normal(0, 1, case.tokens.shape)
    tokens[:, case.layer.pruned_columns] = tokens[:, case.layer.kept_columns] @ mixing.T
    moments = Moments.of(tokens)
    transfer = fit_transfer(moments, case.layer.pruned_columns, case.layer.kept_columns, 0.0, "layer 5")
    np.testing.assert_allclose(transfer, mixing, atol=1e-10)
    mix = case.layer.mix(1.0, transfer)
    none = mix_error(case.layer.weight_gram, moments, MODES["none"].fit(case.layer, None, 0))
    assert abs(mix_error(case.layer.weight_gram, moments, mix)) <= 1e-12 * none
    kept, pruned = case.output[:, case.layer.kept_columns], case.output[:, case.layer.pruned_columns]
    np.testing.assert_allclose(folded(case, mix)[:, case.layer.kept_columns], kept + pruned @ mixing, atol=1e-9)
    assert case.streamed_error(folded(case, mix), tokens) <= 1e-12 * none


@pytest.mark.parametrize("mode", ["none", "scale", "uniform-ls", "head-ls", "least-squares"])
def test_heads_in_another_order_give_the_same_in_that_order(mode: str) -> None:
    case = example((1, 4))
    order = [3, 1, 5, 0, 4, 2]  # head i of the other layer is head order[i] of this one
    columns = np.concatenate([np.arange(4 * head, 4 * head + 4) for head in order])
    pruned = tuple(i for i, head in enumerate(order) if head in (1, 4))
    layer = make_layer(pruned, 6, 4, case.output[:, columns], case.value[columns], [])
    other = Example(layer, case.output[:, columns], case.value[columns], case.tokens[:, columns])
    found = folded(other, MODES[mode].fit(layer, other.moments, 1e-2))
    wanted = folded(case, MODES[mode].fit(case.layer, case.moments, 1e-2))[:, columns]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_heads_that_depend_on_each_other_or_are_silent_have_the_factors_nearest_to_one() -> None:
    case = example((1,))
    case.tokens[:, 0:4] = case.tokens[:, 8:12]  # head 0 is head 2
    case.output[:, 0:4] = case.output[:, 8:12]
    case.output[:, 12:16] = 0  # head 3 says nothing
    mix = MODES["head-ls"].fit(case.layer, case.moments, 0)
    factors = mix.factors[::4]
    assert factors[0] == pytest.approx(factors[2], rel=1e-5)
    assert factors[3] == 1
    assert error_of(case, "head-ls") <= error_of(case, "uniform-ls") * (1 + 1e-6)


def test_moments_that_determine_nothing_are_an_error_that_names_the_layer() -> None:
    case = example()
    silent = Moments.of(np.zeros((10, 24)))
    with pytest.raises(CompensationError, match=r"^layer 5: .*not positive definite"):
        least_squares(case.layer, silent, 1e-2)
    indefinite = case.moments.second.copy()
    indefinite[0, 0] = -1e6
    with pytest.raises(CompensationError, match=r"^layer 5: .*not positive definite"):
        least_squares(case.layer, Moments(indefinite, case.moments.mean, 10), 1e-2)
    few = Moments.of(case.tokens[:3])  # of rank 3
    with pytest.raises(CompensationError, match="not positive definite"):
        fit_transfer(few, case.layer.pruned_columns, case.layer.kept_columns, 0.0, "layer 5")


def test_too_few_tokens_are_told_with_the_number_wanted() -> None:
    case = example(num_tokens=159)
    sentence = too_few_tokens(case.layer, case.moments)
    assert sentence == "layer 5: 159 calibration tokens are few for 16 kept columns; 160 are wanted"
    assert too_few_tokens(case.layer, example(num_tokens=160).moments) is None
