"""Held-out tokens choose the damping, and a simpler mode where a fit follows the noise of its tokens."""

from __future__ import annotations

import numpy as np
import pytest

from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.compensation.error import mix_error
from s4convert.compensation.figures import Choice, measure
from s4convert.compensation.fitting import DAMPINGS, choose, choose_damping
from s4convert.compensation.least_squares import least_squares
from tests.compensation.layers import example

COLUMNS = 24


def test_the_damping_is_the_best_one_of_the_ladder() -> None:
    chosen = set()
    for num_tokens in (4, 8, 12, 4000):
        train, held_out = (
            Moments.of(example(seed=1, num_tokens=8000).tokens[part]) for part in np.s_[:num_tokens, 4000:]
        )
        case = example(seed=1)
        damping, mix, error = choose_damping(case.layer, train, held_out)
        errors = [
            mix_error(case.layer.weight_gram, held_out, least_squares(case.layer, train, each)) for each in DAMPINGS
        ]
        assert (damping, error) == (DAMPINGS[int(np.argmin(errors))], min(errors))
        assert mix_error(case.layer.weight_gram, held_out, mix) == error
        chosen.add(damping)
    assert len(chosen) > 1


def test_without_held_out_tokens_the_mode_is_the_one_asked_for() -> None:
    case = example(num_tokens=20)
    choice, _ = choose("least-squares", case.layer, LayerMoments(case.moments))
    assert choice == Choice("least-squares", 1e-2)
    assert case.warnings == []


def test_a_good_fit_is_kept() -> None:
    case = example(num_tokens=4000)
    train, held_out = Moments.of(case.tokens[:2000]), Moments.of(case.tokens[2000:])
    for mode in ("least-squares", "head-ls", "uniform-ls", "none"):
        choice, _ = choose(mode, case.layer, LayerMoments(train, held_out))
        assert choice.mode == mode
    assert case.warnings == []


@pytest.mark.parametrize(("mode", "dampings"), [("least-squares", 4), ("head-ls", 0), ("uniform-ls", 0)])
def test_a_fit_that_is_worse_than_a_simpler_one_steps_down_to_that_in_words(mode: str, dampings: int) -> None:
    # What the training tokens have in common is not so in the held-out ones: there, pruned heads have turned round.
    case = example((2,), num_tokens=4000, rank=3)
    tokens = case.tokens.copy()
    tokens[:, case.layer.pruned_columns] *= -1
    choice, mix = choose(mode, case.layer, LayerMoments(case.moments, Moments.of(tokens)))
    assert choice.mode == "none"
    assert (mix.factors[mix.kept_columns] == 1).all() and mix.is_diagonal
    (warning,) = case.warnings
    assert warning.startswith(f"layer 5: on held-out tokens, the error of {mode} is ")
    assert warning.endswith("so none is used here; calibrate with more data")


def test_the_figures_are_those_of_none_scale_and_the_fit_on_both_kinds_of_tokens() -> None:
    case = example(num_tokens=4000)
    moments = LayerMoments(Moments.of(case.tokens[:2000]), Moments.of(case.tokens[2000:]))
    choice, mix = choose("least-squares", case.layer, moments)
    fit = measure(case.layer, moments, choice, mix)
    assert fit.held_out is not None
    assert fit.scale_factor == 1.5
    for errors, tokens in ((fit.train, case.tokens[:2000]), (fit.held_out, case.tokens[2000:])):
        for found, factor in ((errors.none, 1.0), (errors.scale, 1.5)):
            after = case.output * factor
            after[:, case.layer.pruned_columns] = 0
            assert found == pytest.approx(case.streamed_error(after, tokens), rel=1e-6)
        after = case.output @ mix.apply_to_heads(np.eye(COLUMNS)).T
        assert errors.fit == pytest.approx(case.streamed_error(after, tokens), rel=1e-9)
    assert fit.to_json()["mode"] == "least-squares"
