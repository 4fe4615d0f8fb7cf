"""The sizes of a language model's attention, and the rows of the tensors that hold its projections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, shown
from .families import LanguageModel


@dataclass(frozen=True)
class Geometry:
    """Attention geometry of a language model; sizes are in elements.

    Query head ``h`` reads kv head ``h // heads_per_group``. To head ``h`` belong the rows of ``q``/``k``/``v`` and the
    columns of ``o`` from ``h * head_dim`` up to, not including, ``(h + 1) * head_dim``.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one kv head."""
        return self.num_heads // self.num_kv_heads

    def num_rows(self, projection: str) -> int:
        """The rows of projection ``q``, ``k``, ``v`` or ``o``."""
        if projection == "o":
            return self.hidden_size
        return (self.num_heads if projection == "q" else self.num_kv_heads) * self.head_dim

    def num_columns(self, projection: str) -> int:
        """The columns of projection ``q``, ``k``, ``v`` or ``o``."""
        return self.num_heads * self.head_dim if projection == "o" else self.hidden_size


def read_geometry(text_config: Mapping[str, Any], language_model: LanguageModel, where: str) -> Geometry:
    """The geometry in a language model's config, with its class's defaults; CheckpointError where a size is wrong."""

    def size(name: str, fallback: int) -> int:
        value = text_config.get(name)
        value = fallback if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise CheckpointError(f"{where}: {name} is {shown(value)}, not a positive integer; mend the config")
        return value

    hidden_size = size("hidden_size", language_model.hidden_size)
    num_heads = size("num_attention_heads", language_model.num_attention_heads)
    # A null in the config means one kv head per head, whatever the default of the class.
    kv_default = None if "num_key_value_heads" in text_config else language_model.num_key_value_heads
    num_kv_heads = size("num_key_value_heads", kv_default or num_heads)
    head_dim = size("head_dim", language_model.head_dim or hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"{where}: {num_heads} heads cannot share {num_kv_heads} kv heads evenly; mend the config"
        )
    num_layers = size("num_hidden_layers", language_model.num_hidden_layers)
    return Geometry(num_layers, num_heads, num_kv_heads, head_dim, hidden_size)


PROJECTIONS = ("q", "k", "v", "o")

# The one tensor qkv_proj of Phi-3 holds the rows of q, then of k, then of v.
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
    """The shape of the tensor with the projections *held*."""
    rows = sum(part.count for part in held)
    return (rows, geometry.num_columns(held[0].projection)) if held[0].kind == "weight" else (rows,)
