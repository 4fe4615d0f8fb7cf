"""The table of compensations: from a layer, and its statistics where they are needed, to the map on its heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..calibration.moments import Moments
from . import factors
from .head_mix import HeadMix
from .least_squares import least_squares
from .pruned_layer import PrunedLayer
from .similarity import residual_transfer, similarity

DEFAULT_DAMPING = 1e-2


@dataclass(frozen=True)
class Mode:
    """One way to compensate.

    *change* says in words what kept columns of ``o_proj`` become. *fit* is given the moments where *needs_moments*
    is on, and None otherwise; the last argument is the damping, which only least squares heeds. *from_mask_alone*:
    no weight and no moment is read. *own_values*: every head must have V rows of its own. *mixes_values*: they change.
    *trained*: what *fit* gives is where a training on the whole model starts, and no map says what comes of it.
    """

    change: str
    fit: Callable[[PrunedLayer, Moments | None, float], HeadMix]
    needs_moments: bool = False
    from_mask_alone: bool = False
    own_values: bool = False
    mixes_values: bool = False
    trained: bool = False


def _without_moments(fit: Callable[[PrunedLayer], HeadMix]) -> Callable[[PrunedLayer, Moments | None, float], HeadMix]:
    return lambda layer, moments, damping: fit(layer)


def _with_moments(
    fit: Callable[[PrunedLayer, Moments], HeadMix],
) -> Callable[[PrunedLayer, Moments | None, float], HeadMix]:
    return lambda layer, moments, damping: fit(layer, _given(moments))


def _given(moments: Moments | None) -> Moments:
    assert moments is not None, "the mode is fitted to moments"
    return moments


MODES: Mapping[str, Mode] = MappingProxyType(
    {
        "scale": Mode("times N / n", _without_moments(factors.scale), from_mask_alone=True),
        "none": Mode("stay", _without_moments(factors.none), from_mask_alone=True),
        "uniform-ls": Mode("times a fitted factor", _with_moments(factors.uniform_least_squares), needs_moments=True),
        "head-ls": Mode("times a fitted factor each", _with_moments(factors.head_least_squares), needs_moments=True),
        "least-squares": Mode(
            "take over the pruned ones by least squares",
            lambda layer, moments, damping: least_squares(layer, _given(moments), damping),
            needs_moments=True,
        ),
        "distill": Mode(
            "are trained towards the original's output",
            lambda layer, moments, damping: least_squares(layer, _given(moments), damping),
            needs_moments=True,
            trained=True,
        ),
        "residual-transfer": Mode(
            "take a little of the pruned heads like them",
            _without_moments(residual_transfer),
            own_values=True,
            mixes_values=True,
        ),
        "similarity": Mode(
            "times a factor by their likeness to pruned heads", _without_moments(similarity), own_values=True
        ),
    }
)

REFIT = "least-squares"  # where a training starts

# Each contains the ones before it as special cases, so only too little data can make one worse than those.
FITTED_MODES = ("none", "uniform-ls", "head-ls", "least-squares")


def default_mode(*, has_data: bool) -> str:
    """The mode where none is asked for: the S4 scale needs no calibration data, and with data there is better."""
    return "least-squares" if has_data else "scale"
