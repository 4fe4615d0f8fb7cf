"""How good a layer's compensation is, beside none and the S4 scale; and what to advise where that is worse."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..calibration.moments import LayerMoments, Moments
from .error import best_uniform_factor, head_gram, mix_error
from .head_mix import HeadMix
from .modes import DEFAULT_DAMPING, MODES
from .pruned_layer import PrunedLayer

NOTICED = 0.01  # how much more error than that of no compensation is told


@dataclass(frozen=True)
class Choice:
    """The mode of a layer; *damping* is that of ``least-squares``, None of any other."""

    mode: str
    damping: float | None = None


@dataclass(frozen=True)
class Errors:
    """E, the mean squared change of the attention output, of no compensation, of the S4 scale, and of the fit."""

    none: float
    scale: float
    fit: float

    def to_json(self) -> dict[str, float]:
        """The figures, rounded to four significant digits."""
        return {"none": rounded(self.none), "scale": rounded(self.scale), "fit": rounded(self.fit)}


# E of no compensation, and what the S4 scale, the fit, the fit as stored and the fit on held-out tokens leave of it.
FIT_COLUMNS = "layer  compensation      damping     E none  scale    fit  stored  held-out fit"


@dataclass(frozen=True)
class LayerFigures:
    """The figures of one layer, on the tokens that the fit was made of and on held-out ones.

    *scale_factor* is the S4 scale s, *best_factor* is c*, the one factor that would make E smallest.
    """

    layer: int
    choice: Choice
    scale_factor: float
    best_factor: float
    train: Errors
    held_out: Errors | None

    def to_row(self, stored_error: float) -> str:
        """The fit as a row under :data:`FIT_COLUMNS`; *stored_error* is E of the weights as they were stored."""
        held_out = "" if self.held_out is None else f"{self.held_out.fit / self.held_out.none:>12.3f}"
        damping = "" if self.choice.damping is None else f"{self.choice.damping:g}"
        return (
            f"{self.layer:>5}  {self.choice.mode:<17} {damping:>7}  {self.train.none:>9.3e}  "
            f"{self.train.scale / self.train.none:>5.3f}  {self.train.fit / self.train.none:>5.3f}  "
            f"{stored_error / self.train.none:>6.3f} {held_out:>12}"
        )

    def to_json(self) -> dict[str, Any]:
        """The fit for a script to read."""
        return {
            "mode": self.choice.mode,
            "damping": self.choice.damping,
            "scale_factor": rounded(self.scale_factor),
            "best_factor": rounded(self.best_factor),
            "error": self.train.to_json(),
            "held_out_error": None if self.held_out is None else self.held_out.to_json(),
        }


def measure(layer: PrunedLayer, moments: LayerMoments, choice: Choice, mix: HeadMix) -> LayerFigures:
    """The figures of *mix* in *layer*; of a mix of values, only what it does to ``o_proj`` is measured."""
    none = MODES["none"].fit(layer, None, DEFAULT_DAMPING)
    scale = MODES["scale"].fit(layer, None, DEFAULT_DAMPING)

    def errors(tokens: Moments) -> Errors:
        return Errors(*(mix_error(layer.weight_gram, tokens, each) for each in (none, scale, mix)))

    gram = head_gram(layer.weight_gram, moments.train, layer.geometry.head_dim)
    return LayerFigures(
        layer.number,
        choice,
        float(scale.factors[scale.kept_columns[0]]),
        best_uniform_factor(gram, layer),
        errors(moments.train),
        None if moments.held_out is None else errors(moments.held_out),
    )


def advice(mode: str, factors: Collection[tuple[float, float]], data: str) -> str | None:
    """A sentence where *mode* is the S4 scale and worse than nothing in some of the layers; else None.

    *factors* are (s, c*) of each layer that loses heads, as measured on *data*. E is a parabola in the factor with its
    vertex at c*, so s > 1 is worse than 1 exactly where c* < (1 + s) / 2.
    """
    worse = [(scale, best) for scale, best in factors if abs(scale - best) > abs(1 - best)]
    if mode != "scale" or not worse:
        return None
    scale, best = (statistics.median(column) for column in zip(*worse, strict=True))
    return (
        f"on {data}, the scale makes the error larger than no compensation does in {len(worse)} of {len(factors)} "
        f"layers: the best factor is {best:.3f}, not {scale:.3f} (medians); `compensation='least-squares'` is better"
    )


def advice_against(mode: str, errors_left: Collection[float], data: str) -> str | None:
    """A sentence where *mode* is worse than nothing in some of the layers that lose heads; else None.

    *errors_left* are what it leaves of the E of no compensation in each of them, as measured on *data*.
    """
    worse = [left for left in errors_left if left > 1 + NOTICED]
    if not worse:
        return None
    instead = "calibrate with more data" if MODES[mode].needs_moments else "`compensation='least-squares'` is better"
    return (
        f"on {data}, {mode} makes the error larger than no compensation does in {len(worse)} of {len(errors_left)} "
        f"layers, {statistics.median(worse):.3g} times as large (median); {instead}"
    )


def rounded(value: float) -> float:
    """*value* to four significant digits, on which machines agree."""
    return float(f"{value:.4g}")
