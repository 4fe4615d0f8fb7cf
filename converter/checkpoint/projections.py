"""Where a layer's projections ``q``, ``k``, ``v`` and ``o`` stand: each in a tensor, or as rows of a fused one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from converter.checkpoint.geometry import Geometry

PROJECTIONS = ("q", "k", "v", "o")

# Phi-3 keeps q, k and v in one tensor, one below the other.
_PATTERN = re.compile(r"self_attn\.(q|k|v|o|qkv)_proj\.(weight|bias)")


@dataclass(frozen=True)
class ProjectionRows:
    """Rows [first, first + count) of a tensor are the ``weight`` or ``bias`` (*kind*) of *projection*."""

    projection: str
    kind: str
    first: int
    count: int


def projections_in(name_in_layer: str, geometry: Geometry) -> tuple[ProjectionRows, ...]:
    """The projections that the tensor *name_in_layer* of a decoder layer holds, from its first row to its last."""
    match = _PATTERN.fullmatch(name_in_layer)
    held: list[ProjectionRows] = []
    first = 0
    for projection in match[1] if match else "":
        count = geometry.num_rows(projection)
        held.append(ProjectionRows(projection, match[2] if match else "", first, count))
        first += count
    return tuple(held)


def expected_shape(held: tuple[ProjectionRows, ...], geometry: Geometry) -> tuple[int, ...]:
    """The shape that a tensor with these projections must have."""
    rows = sum(part.count for part in held)
    return (rows, geometry.num_columns(held[0].projection)) if held[0].kind == "weight" else (rows,)
