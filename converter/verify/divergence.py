"""How far is what the converted weights say from what the original says, beside what pruning alone makes of it?

The original is resident, and the rewritten tensors are read from both checkpoints' files; that nothing else differs,
the comparison of bytes has seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..calibration.comparison import divergence, taught_states
from ..calibration.inputs import Inputs
from ..checkpoint import Checkpoint, StoredTensor
from ..errors import VerificationError
from ..model.divergence import Divergence
from ..model.output_head import OutputHead
from ..model.resident import Change, ResidentModel
from .claim import Claim

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HeldOutReport:
    """How far *none*, without any compensation, and the *converted* model are from the original on *num_samples*."""

    num_samples: int
    none: Divergence
    converted: Divergence

    def to_json(self) -> dict[str, Any]:
        """The figures for a script to read."""
        sizes = {"num_samples": self.num_samples, "tokens": self.converted.tokens}
        return sizes | {"none": self.none.to_json(), "converted": self.converted.to_json()}

    def to_text(self) -> str:
        """The figures in a line."""
        return (
            f"held out: on {self.num_samples} samples, KL to the original {self.none.kl:.4g} without compensation, "
            f"{self.converted.kl:.4g} converted; the likeliest token is the original's at {self.none.agreement:.1%} "
            f"and {self.converted.agreement:.1%} of {self.converted.tokens:,} text positions"
        )


def check_held_out(claim: Claim, samples: Sequence[Inputs], *, device: str) -> HeldOutReport:
    """Compare the models of *claim* on *samples*, on *device*.

    Raises:
        VerificationError: what was trained is no nearer to the original than no compensation.
        StorageError: weights cannot be read.
    """
    original = claim.original
    model, head = ResidentModel(original, device=device), OutputHead(original, device)
    taught = taught_states(model, samples)
    found = {}
    for name, changes in (("none", _silenced(claim)), ("converted", _converted(claim))):
        with model.changed(changes):
            found[name] = divergence(model, head, samples, taught)
    report = HeldOutReport(len(samples), found["none"], found["converted"])
    if claim.fits.trains and not report.converted.kl < report.none.kl:
        raise VerificationError(
            f"{claim.converted.path}: on held-out samples, its KL to the original is {report.converted.kl:.4g}, and "
            f"that of no compensation {report.none.kl:.4g}; do not use it, and train with more data or a lower rate"
        )
    return report


def _silenced(claim: Claim) -> list[Change]:
    """The columns of pruned heads become zero, and nothing else."""
    head_dim, changes = claim.original.geometry.head_dim, []
    for layer in claim.mask.touched_layers:
        output, pruned = claim.original.output_projection(layer), list(claim.mask.pruned[layer])
        changes.append(Change(output, 0, output.num_rows, partial(_without, pruned, head_dim)))
    return changes


def _without(pruned: list[int], head_dim: int, rows: torch.Tensor) -> torch.Tensor:
    rows = rows.clone()
    rows.reshape(len(rows), -1, head_dim)[:, pruned] = 0.0
    return rows


def _converted(claim: Claim) -> list[Change]:
    """Every tensor with projections of touched layers becomes the converted one's."""
    changes = []
    for layer in claim.mask.touched_layers:
        for name, tensor in claim.original.layers[layer].items():
            if claim.original.projections_in(tensor) is not None:
                own = claim.converted.layers[layer][name]
                changes.append(Change(tensor, 0, tensor.num_rows, partial(_own, claim.converted, own)))
    return changes


def _own(converted: Checkpoint, tensor: StoredTensor, rows: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.from_numpy(converted.read_rows(tensor)).reshape(rows.shape).to(rows.device)
