"""How good a layer's compensation is, beside none and the S4 scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..calibration.moments import LayerMoments, Moments
from .error import best_uniform_factor, head_gram, mix_error
from .head_mix import HeadMix
from .modes import DEFAULT_DAMPING, MODES
from .pruned_layer import PrunedLayer


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


def rounded(value: float) -> float:
    """*value* to four significant digits, on which machines agree."""
    return float(f"{value:.4g}")
