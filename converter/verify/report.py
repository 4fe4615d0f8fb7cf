"""What was verified, for people and for scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from converter.mask import HeadMask
from converter.verify.behaviour import BehaviourReport
from converter.verify.structure import StructureReport


@dataclass(frozen=True)
class Report:
    """The outcome of a verification that passed; *behaviour* is None where that check was skipped."""

    mask: HeadMask
    structure: StructureReport
    behaviour: BehaviourReport | None

    def to_json(self) -> dict[str, Any]:
        """The figures, rounded to four significant digits so that machines agree on them."""
        return {
            "structure": {
                "identical_tensors": self.structure.identical_tensors,
                "edited_tensors": self.structure.edited_tensors,
                "sidecars": self.structure.sidecars,
            },
            "behaviour": None if self.behaviour is None else _behaviour_json(self.behaviour),
        }

    def to_text(self) -> str:
        """The table that a conversion ends with."""
        lines = []
        if self.behaviour is None:
            lines.append("behaviour: not checked (--no-verify)")
        else:
            lines += [
                f"probe: {self.behaviour.probe}",
                "",
                "layer  heads pruned  mean |delta|  relative delta  off reference",
            ]
            for row in self.behaviour.layers:
                lines.append(
                    f"{row.layer:>5}  {len(row.pruned):>12}  {row.mean_abs_delta:>12.3e}"
                    f"  {row.relative_delta:>14.2%}  {row.reference_error:>13.1e}"
                )
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
            }
            for row in behaviour.layers
        ],
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
