"""The table of metrics: how each scores the heads of a layer. The short ones stand here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..calibration.moments import SecondMoments
from ..calibration.stream import LayerSample
from ..checkpoint import Checkpoint, Geometry
from ..choices import GAMMA
from .cross_attention import CrossAttention
from .reconstruction import DAMPING, Reconstruction, output_weight

if TYPE_CHECKING:
    pass


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


class Magnitude:
    """The Frobenius norm of O_h V_h, the product of a head's ``o_proj`` columns and its value rows; no biases.

    It is the root of tr((O^T O)(V V^T)), in float64, so that O_h V_h [hidden_size, hidden_size] is never built.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self._checkpoint, self._layer = checkpoint, layer

    def observe(self, sample: LayerSample) -> None:
        """Looks at nothing."""

    def scores(self) -> tuple[float, ...]:
        checkpoint, geometry = self._checkpoint, self._checkpoint.geometry
        value = checkpoint.projection(self._layer, "v", "weight")
        assert value is not None  # Checkpoint.open refuses a layer without it
        values = checkpoint.read_rows(value.tensor, value.first, value.count).astype(np.float64)
        values = values.reshape(geometry.num_kv_heads, geometry.head_dim, -1)
        outputs = checkpoint.read_rows(checkpoint.output_projection(self._layer)).astype(np.float64)
        outputs = outputs.reshape(-1, geometry.num_heads, geometry.head_dim)
        scores = []
        for head in range(geometry.num_heads):
            columns, rows = outputs[:, head], values[head // geometry.heads_per_group]
            scores.append(float(np.sqrt(max(0.0, float(((columns.T @ columns) * (rows @ rows.T)).sum())))))
        return tuple(scores)


class Random:
    """Uniform in [0, 1): the numbers of numpy's PCG64, layer by layer; they depend on nothing else than the seed."""

    def __init__(self, geometry: Geometry, layer: int, seed: int) -> None:
        numbers = np.random.Generator(np.random.PCG64(seed)).random((geometry.num_layers, geometry.num_heads))
        self._scores = tuple(float(number) for number in numbers[layer])

    def observe(self, sample: LayerSample) -> None:
        """Looks at nothing."""

    def scores(self) -> tuple[float, ...]:
        return self._scores


@dataclass(frozen=True)
class Settings:
    """What metrics can be told: *gamma* of ``cross-attention``, *seed* of ``random``, *device* that computes."""

    gamma: float = GAMMA
    seed: int = 0
    device: str = "cpu"


class LayerScorer(Protocol):
    """Scores the heads of one layer, after it has looked at every calibration sample inside the layer."""

    def observe(self, sample: LayerSample) -> None: ...

    def scores(self) -> tuple[float, ...]: ...


@dataclass(frozen=True)
class Metric:
    """*scorer* makes the scorer of one layer; *needs_data*, whether it must see calibration samples.

    *provenance* are the settings that its scores depend on, by name.
    """

    scorer: Callable[[Checkpoint, int, Settings], LayerScorer]
    needs_data: bool
    provenance: Callable[[Settings], dict[str, Any]]


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "cross-attention": Metric(
            lambda checkpoint, layer, settings: CrossAttention(checkpoint.geometry.num_heads, settings.gamma),
            needs_data=True,
            provenance=lambda settings: {"gamma": settings.gamma},
        ),
        "energy": Metric(
            lambda checkpoint, layer, settings: Energy(checkpoint, layer, settings.device),
            needs_data=True,
            provenance=lambda settings: {},
        ),
        "reconstruction": Metric(
            lambda checkpoint, layer, settings: Reconstruction(checkpoint, layer, settings.device),
            needs_data=True,
            provenance=lambda settings: {"damping": DAMPING},
        ),
        "magnitude": Metric(
            lambda checkpoint, layer, settings: Magnitude(checkpoint, layer),
            needs_data=False,
            provenance=lambda settings: {},
        ),
        "random": Metric(
            lambda checkpoint, layer, settings: Random(checkpoint.geometry, layer, settings.seed),
            needs_data=False,
            provenance=lambda settings: {"seed": settings.seed},
        ),
    }
)
