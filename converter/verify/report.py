"""What was verified, for people and for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..compensation.layer_fit import FIT_COLUMNS, LayerFit, advice
from ..mask import HeadMask
from .behaviour import BehaviourReport, LayerDelta
from .structure import StructureReport


@dataclass(frozen=True)
class Report:
    """The outcome of a verification that passed; *behaviour* is None where that check was skipped.

    *fits* are the figures of the compensation in each layer that loses heads, where there was calibration data, and
    *stored_errors* the errors of the same weights as they were stored, rounded.
    """

    mask: HeadMask
    structure: StructureReport
    behaviour: BehaviourReport | None
    fits: Mapping[int, LayerFit] = field(default_factory=dict)
    stored_errors: Mapping[int, float] = field(default_factory=dict)

    def with_card(self, files: Mapping[str, tuple[int, str]]) -> Report:
        """The report of the same conversion with a model card: *files*, by name, with their (size, sha256)."""
        digests = dict(sorted({**self.structure.digests, **files}.items()))
        sidecars = self.structure.sidecars - sum(name in self.structure.digests for name in files)
        return replace(
            self, structure=replace(self.structure, digests=digests, sidecars=sidecars, card=frozenset(files))
        )

    def to_json(self) -> dict[str, Any]:
        """The figures, rounded to four significant digits so that machines agree on them."""
        return {
            "structure": {
                "identical_tensors": self.structure.identical_tensors,
                "edited_tensors": self.structure.edited_tensors,
                "sidecars": self.structure.sidecars,
            },
            "behaviour": None if self.behaviour is None else _behaviour_json(self.behaviour),
            **({"compensation": self._compensation_json()} if self.fits else {}),
        }

    def _compensation_json(self) -> dict[str, Any]:
        return {
            str(layer): fit.to_json() | {"stored_error": _rounded(self.stored_errors[layer])}
            for layer, fit in self.fits.items()
        }

    def advice(self, mode: str) -> str | None:
        """A sentence where the S4 scale was used and is worse than nothing, on the best data there is; else None."""
        if self.fits:
            return advice(mode, [(fit.scale_factor, fit.best_factor) for fit in self.fits.values()], "calibration data")
        layers = () if self.behaviour is None else self.behaviour.layers
        factors = [
            (row.scale_factor, row.best_factor)
            for row in layers
            if row.scale_factor is not None and row.best_factor is not None
        ]
        return advice(mode, factors, "the probe")

    def to_text(self) -> str:
        """The table that a conversion ends with."""
        lines = []
        if self.behaviour is None:
            lines.append("behaviour: not checked (--no-verify)")
        else:
            lines += [
                f"probe: {self.behaviour.probe}",
                "",
                "layer  heads pruned  mean |delta|  relative delta  off reference    N/n     c*",
            ]
            for row in self.behaviour.layers:
                lines.append(
                    f"{row.layer:>5}  {len(row.pruned):>12}  {row.mean_abs_delta:>12.3e}"
                    f"  {row.relative_delta:>14.2%}  {row.reference_error:>13.1e}{_factors(row)}"
                )
            lines.append("")
        if self.fits:
            lines += [FIT_COLUMNS]
            lines += [fit.to_row(self.stored_errors[layer]) for layer, fit in self.fits.items()]
            lines.append("")
        heads = self.mask.num_layers * self.mask.num_heads
        lines += [
            f"structure: {self.structure.edited_tensors} tensors edited, {self.structure.identical_tensors} tensors"
            f" and {self.structure.sidecars} other files byte-identical",
            f"verdict: OK, {self.mask.num_pruned} of {heads} heads silenced in {len(self.mask.touched_layers)}"
            f" of {self.mask.num_layers} layers" + ("" if self.behaviour is None else self._agreement()),
        ]
        return "\n".join(lines)

    def _agreement(self) -> str:
        assert self.behaviour is not None
        worst = max(row.own_error for row in self.behaviour.layers)
        return f"; each equals the hooked original to {worst:.1e} (tolerance {self.behaviour.tolerance:.1e})"


def _factors(row: LayerDelta) -> str:
    if row.scale_factor is None or row.best_factor is None:
        return ""
    return f"  {row.scale_factor:>5.3f}  {row.best_factor:>5.3f}"


def _behaviour_json(behaviour: BehaviourReport) -> dict[str, Any]:
    return {
        "probe": behaviour.probe,
        "tolerance": _rounded(behaviour.tolerance),
        "layers": [
            {
                "layer": row.layer,
                "heads_pruned": len(row.pruned),
                "mean_abs_delta": _rounded(row.mean_abs_delta),
                "relative_delta": _rounded(row.relative_delta),
                "reference_error": _rounded(row.reference_error),
                "own_delta": _rounded(row.own_delta),
                "own_error": _rounded(row.own_error),
                "scale_factor": None if row.scale_factor is None else _rounded(row.scale_factor),
                "best_factor": None if row.best_factor is None else _rounded(row.best_factor),
            }
            for row in behaviour.layers
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
