"""The table of metrics, and the short ones among them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..calibration.moments import SecondMoments
from ..calibration.stream import LayerBatch
from ..checkpoint import Checkpoint, Geometry
from ..choices import GAMMA, LOSSES
from .cross_attention import CrossAttention
from .reconstruction import DAMPING, Reconstruction, not_below_zero


class Energy(SecondMoments):
    """E||W_h x_h||^2 = tr(W_h S_hh W_h^T); W_h: the head's ``o_proj`` columns, S: E[x x^T], text and image mixed."""

    def __init__(self, checkpoint: Checkpoint, layer: int, device: str) -> None:
        super().__init__()
        self._checkpoint, self._layer, self._device = checkpoint, layer, device

    def scores(self) -> tuple[float, ...]:
        import torch

        moments = self.mixed()
        weight = torch.from_numpy(self._checkpoint.read_projection(self._layer, "o")).to(self._device)
        head_dim = self._checkpoint.geometry.head_dim
        scores = []
        for begin in range(0, len(moments), head_dim):
            head = slice(begin, begin + head_dim)
            scores.append(not_below_zero(float(((weight[:, head] @ moments[head, head]) * weight[:, head]).sum())))
        return tuple(scores)


class Magnitude:
    """The Frobenius norm of O_h V_h, a head's ``o_proj`` columns times its value rows, without biases.

    It is computed in float64 as the root of tr((O^T O)(V V^T)), without the product [hidden_size, hidden_size].
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self._checkpoint, self._layer = checkpoint, layer

    def observe(self, batch: LayerBatch) -> None:
        """Looks at nothing."""

    def scores(self) -> tuple[float, ...]:
        checkpoint, geometry = self._checkpoint, self._checkpoint.geometry
        values = checkpoint.read_projection(self._layer, "v").reshape(geometry.num_kv_heads, geometry.head_dim, -1)
        outputs = checkpoint.read_projection(self._layer, "o").reshape(-1, geometry.num_heads, geometry.head_dim)
        scores = []
        for head in range(geometry.num_heads):
            columns, rows = outputs[:, head], values[head // geometry.heads_per_group]
            scores.append(math.sqrt(not_below_zero(float(((columns.T @ columns) * (rows @ rows.T)).sum()))))
        return tuple(scores)


class Random:
    """Uniform in [0, 1), from numpy's PCG64, layer by layer; the numbers depend only on the seed."""

    def __init__(self, geometry: Geometry, layer: int, seed: int) -> None:
        numbers = np.random.Generator(np.random.PCG64(seed)).random((geometry.num_layers, geometry.num_heads))
        self._scores = tuple(float(number) for number in numbers[layer])

    def observe(self, batch: LayerBatch) -> None:
        """Looks at nothing."""

    def scores(self) -> tuple[float, ...]:
        return self._scores


@dataclass(frozen=True)
class Settings:
    """The options of metrics: *gamma* of ``cross-attention``, *seed* of ``fisher`` and ``random``, *device* computes.

    ``fisher`` draws labels where *loss* says, and takes the whole model into memory where *resident* is on.
    """

    gamma: float = GAMMA
    seed: int = 0
    device: str = "cpu"
    loss: str = LOSSES[0]
    resident: bool = False


class LayerScorer(Protocol):
    """Scores the heads of one layer, after it has observed every calibration sample."""

    def observe(self, batch: LayerBatch) -> None: ...

    def scores(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Metric:
    """*scorer* makes the scorer of a layer, which *needs_data* or not; *provenance* are the settings that it uses.

    There is none for ``fisher``, whose gradients come from the layers above.
    """

    scorer: Callable[[Checkpoint, int, Settings], LayerScorer] | None
    needs_data: bool
    provenance: Callable[[Settings], dict[str, Any]] = lambda settings: {}


METRICS: Mapping[str, Metric] = {
    "cross-attention": Metric(
        lambda checkpoint, layer, settings: CrossAttention(checkpoint.geometry.num_heads, settings.gamma),
        needs_data=True,
        provenance=lambda settings: {"gamma": settings.gamma},
    ),
    "energy": Metric(
        lambda checkpoint, layer, settings: Energy(checkpoint, layer, settings.device),
        needs_data=True,
    ),
    "reconstruction": Metric(
        lambda checkpoint, layer, settings: Reconstruction(checkpoint, layer, settings.device),
        needs_data=True,
        provenance=lambda settings: {"damping": DAMPING},
    ),
    "fisher": Metric(
        None,
        needs_data=True,
        provenance=lambda settings: {
            "damping": DAMPING,
            "seed": settings.seed,
            "loss": settings.loss,
            "resident": settings.resident,
        },
    ),
    "magnitude": Metric(
        lambda checkpoint, layer, settings: Magnitude(checkpoint, layer),
        needs_data=False,
    ),
    "random": Metric(
        lambda checkpoint, layer, settings: Random(checkpoint.geometry, layer, settings.seed),
        needs_data=False,
        provenance=lambda settings: {"seed": settings.seed},
    ),
}
