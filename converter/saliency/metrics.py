"""The table of metrics: how each scores the heads of one layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from converter.calibration.stream import LayerSample
from converter.checkpoint import Checkpoint
from converter.saliency.cross_attention import CrossAttention
from converter.saliency.energy import Energy
from converter.saliency.magnitude import Magnitude
from converter.saliency.random import Random
from converter.saliency.reconstruction import DAMPING, Reconstruction


@dataclass(frozen=True)
class Settings:
    """What metrics can be told: *gamma* of ``cross-attention``, *seed* of ``random``, *device* that computes."""

    gamma: float = 0.4
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
