"""``random``: seeded numbers, the baseline that every metric has to beat."""

from __future__ import annotations

import numpy as np

from converter.calibration.stream import LayerSample
from converter.checkpoint import Geometry


class Random:
    """Uniform in [0, 1): the numbers of numpy's PCG64, layer by layer; they depend on nothing else than the seed."""

    def __init__(self, geometry: Geometry, layer: int, seed: int) -> None:
        numbers = np.random.Generator(np.random.PCG64(seed)).random((geometry.num_layers, geometry.num_heads))
        self._scores = tuple(float(number) for number in numbers[layer])

    def observe(self, sample: LayerSample) -> None:
        """Looks at nothing."""

    def scores(self) -> tuple[float, ...]:
        return self._scores
