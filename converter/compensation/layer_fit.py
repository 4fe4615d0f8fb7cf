"""How good a layer's compensation is, beside none and the S4 scale; and what to advise where that is worse."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from converter.compensation.error import best_uniform_factor, head_gram, mix_error
from converter.compensation.head_mix import HeadMix
from converter.compensation.held_out import Choice
from converter.compensation.modes import DEFAULT_DAMPING, MODES
from converter.compensation.moments import LayerMoments, Moments
from converter.compensation.pruned_layer import PrunedLayer


@dataclass(frozen=True)
class Errors:
    """E, the mean squared change of the attention output, of no compensation, of the S4 scale, and of the fit."""

    none: float
    scale: float
    fit: float

    def to_json(self) -> dict[str, float]:
        """The figures, rounded to four significant digits."""
        return {"none": _rounded(self.none), "scale": _rounded(self.scale), "fit": _rounded(self.fit)}


@dataclass(frozen=True)
class LayerFit:
    """The figures of one layer, on the tokens that the fit was made of and on held-out ones.

    *scale_factor* is the S4 scale s, *best_factor* is c*, the one factor that would make E smallest.
    """

    layer: int
    choice: Choice
    scale_factor: float
    best_factor: float
    train: Errors
    held_out: Errors | None

    def to_json(self) -> dict[str, Any]:
        """The fit for a script to read."""
        return {
            "mode": self.choice.mode,
            "damping": self.choice.damping,
            "scale_factor": _rounded(self.scale_factor),
            "best_factor": _rounded(self.best_factor),
            "error": self.train.to_json(),
            "held_out_error": None if self.held_out is None else self.held_out.to_json(),
        }


def measure_fit(layer: PrunedLayer, moments: LayerMoments, choice: Choice, mix: HeadMix) -> LayerFit:
    """The figures of *mix* in *layer*; of a mix of values, only what it does to ``o_proj`` is measured."""
    none = MODES["none"].fit(layer, None, DEFAULT_DAMPING)
    scale = MODES["scale"].fit(layer, None, DEFAULT_DAMPING)

    def errors(tokens: Moments) -> Errors:
        return Errors(*(mix_error(layer.weight_gram, tokens, each) for each in (none, scale, mix)))

    gram = head_gram(layer.weight_gram, moments.train, layer.geometry.head_dim)
    return LayerFit(
        layer.number,
        choice,
        float(scale.factors[scale.kept_columns[0]]),
        best_uniform_factor(gram, layer),
        errors(moments.train),
        None if moments.held_out is None else errors(moments.held_out),
    )


def advice(mode: str, fits: Mapping[int, LayerFit]) -> str | None:
    """A sentence where *mode*, used in the layers of *fits*, is the S4 scale and worse than nothing; else None."""
    worse = [fit for fit in fits.values() if fit.train.scale > fit.train.none]
    if mode != "scale" or not worse:
        return None
    return (
        f"in {len(worse)} of {len(fits)} layers the scale N/n makes the error larger than no compensation does: the "
        f"best factor is {_median(fit.best_factor for fit in worse)}, not {_median(fit.scale_factor for fit in worse)} "
        "(medians); least-squares would be better"
    )


def _median(numbers: Collection[float] | Any) -> str:
    return f"{statistics.median(numbers):.3f}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
