"""``energy``: the head's share of the layer's attention output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.calibration.second_moments import SecondMoments
from converter.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch


class Energy(SecondMoments):
    """E||W_h x_h||^2 = tr(W_h S_hh W_h^T), W_h the head's ``o_proj`` columns, S mixed from text and image tokens."""

    def __init__(self, checkpoint: Checkpoint, layer: int, device: str) -> None:
        super().__init__()
        self._checkpoint, self._layer, self._device = checkpoint, layer, device

    def scores(self) -> tuple[float, ...]:
        weight, moments = output_weight(self._checkpoint, self._layer, self._device), self.mixed()
        head_dim = self._checkpoint.geometry.head_dim
        scores = []
        for begin in range(0, len(moments), head_dim):
            head = slice(begin, begin + head_dim)
            scores.append(max(0.0, float(((weight[:, head] @ moments[head, head]) * weight[:, head]).sum())))
        return tuple(scores)


def output_weight(checkpoint: Checkpoint, layer: int, device: str) -> torch.Tensor:
    """The weight of ``o_proj`` [hidden_size, num_heads * head_dim] in float64."""
    import torch

    return torch.from_numpy(checkpoint.read_rows(checkpoint.output_projection(layer))).to(device).double()
