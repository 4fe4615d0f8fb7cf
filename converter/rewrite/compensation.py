"""What is folded into ``o_proj`` to make up for pruned heads: one factor per head and layer."""

from __future__ import annotations

from types import MappingProxyType
from typing import Protocol

import numpy as np

from converter.checkpoint.dtypes import Float32Array
from converter.checkpoint.geometry import Geometry
from converter.mask import HeadMask


class Compensation(Protocol):
    """The factor for every kept head of a layer that loses heads."""

    def __call__(self, mask: HeadMask, layer: int) -> float: ...


def no_compensation(mask: HeadMask, layer: int) -> float:
    """Kept heads stay as they are."""
    return 1.0


def scale_compensation(mask: HeadMask, layer: int) -> float:
    """N / n, all heads over kept heads (S4); the mask's own ``scale`` for the layer comes first."""
    if mask.scale is not None and layer in mask.scale:
        return mask.scale[layer]
    return mask.num_heads / len(mask.kept(layer))


COMPENSATIONS = MappingProxyType({"scale": scale_compensation, "none": no_compensation})


def column_factors(mask: HeadMask, layer: int, geometry: Geometry, compensation: str) -> Float32Array:
    """A factor for each column of the layer's ``o_proj`` [num_heads * head_dim]: 0 where the head is pruned."""
    per_head = np.full(geometry.num_heads, COMPENSATIONS[compensation](mask, layer), dtype=np.float32)
    per_head[list(mask.pruned[layer])] = 0.0
    return np.repeat(per_head, geometry.head_dim)
