"""What tokens that no fit has seen decide: how much to damp least squares, and whether a simpler mode is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..calibration.moments import LayerMoments, Moments
from .error import mix_error
from .head_mix import HeadMix
from .least_squares import least_squares
from .modes import DEFAULT_DAMPING, FITTED_MODES, MODES
from .pruned_layer import PrunedLayer

DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Choice:
    """The mode of a layer; *damping* is that of ``least-squares``, None of any other."""

    mode: str
    damping: float | None = None


def choose_damping(layer: PrunedLayer, train: Moments, held_out: Moments) -> tuple[float, HeadMix, float]:
    """(damping of :data:`DAMPINGS`, fit to *train*, its E on *held_out*) with the smallest E.

    Raises:
        CompensationError: least squares has no solution.
    """
    best: tuple[float, HeadMix, float] | None = None
    for damping in DAMPINGS:
        mix = least_squares(layer, train, damping)
        error = mix_error(layer.weight_gram, held_out, mix)
        if best is None or error < best[2]:
            best = (damping, mix, error)
    assert best is not None
    return best


def choose(mode: str, layer: PrunedLayer, moments: LayerMoments | None) -> tuple[Choice, HeadMix]:
    """The fit of *mode*, or of the simpler mode that is best on the held-out moments where *mode*'s is not.

    Without held-out moments, the mode is the one asked for and the damping the default. Stepping down is told to the
    layer's *warn*.

    Raises:
        CompensationError: there is no fit.
    """
    train = None if moments is None else moments.train
    if mode not in FITTED_MODES or moments is None or moments.held_out is None:
        damping = DEFAULT_DAMPING if mode == "least-squares" else None
        return Choice(mode, damping), MODES[mode].fit(layer, train, DEFAULT_DAMPING)
    fits: dict[str, tuple[Choice, HeadMix]] = {}
    errors: dict[str, float] = {}
    for name in FITTED_MODES[: FITTED_MODES.index(mode) + 1]:
        if name == "least-squares":
            best, mix, errors[name] = choose_damping(layer, moments.train, moments.held_out)
            fits[name] = Choice(name, best), mix
        else:
            mix = MODES[name].fit(layer, train, DEFAULT_DAMPING)
            fits[name], errors[name] = (Choice(name), mix), mix_error(layer.weight_gram, moments.held_out, mix)
    chosen = _smallest(errors, mode)
    if chosen != mode:
        layer.warn(
            f"layer {layer.number}: on held-out tokens, the error of {mode} is {errors[mode]:.4g} and that of {chosen} "
            f"{errors[chosen]:.4g}, so {chosen} is used here; calibrate with more data"
        )
    return fits[chosen]


def _smallest(errors: Mapping[str, float], asked: str) -> str:
    """The mode with the smallest error; the one that was asked for where it is as good as any."""
    smallest = min(errors.values())
    return asked if errors[asked] <= smallest else min(errors, key=lambda name: errors[name])
