"""The plan: every edit that a mask asks of a checkpoint, by tensor and byte range. Pure: nothing is read or written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from converter.checkpoint import Checkpoint, Projection, StoredTensor
from converter.checkpoint.dtypes import Float32Array
from converter.checkpoint.geometry import Geometry
from converter.mask import HeadMask
from converter.rewrite.assembly import OutputFile, Piece, assemble
from converter.rewrite.compensation import column_factors


@dataclass(frozen=True)
class Edit(ABC):
    """A change of rows [first, first + count) of the weight (or bias) of *projection* ``q``, ``k``, ``v`` or ``o``."""

    tensor: StoredTensor
    layer: int
    projection: str
    first: int
    count: int

    @property
    def begin(self) -> int:
        """Where the edited rows begin in IN's shard, in bytes."""
        return self.tensor.entry.begin + self.first * self.tensor.row_bytes

    @property
    def end(self) -> int:
        """Where they end, provided that the tensor's rows follow each other there."""
        return self.begin + self.count * self.tensor.row_bytes

    @abstractmethod
    def apply(self, rows: Float32Array) -> Float32Array:
        """What *rows*, any of those in the edit's range, become."""

    @abstractmethod
    def describe(self) -> str:
        """The edit in words."""


@dataclass(frozen=True)
class RowEdit(Edit):
    """The rows become zero."""

    def apply(self, rows: Float32Array) -> Float32Array:
        return np.zeros_like(rows)

    def describe(self) -> str:
        return f"rows {self.first}-{self.first + self.count - 1} become 0"


@dataclass(frozen=True)
class ColumnEdit(Edit):
    """The columns are multiplied by *factors* [columns]; those with factor 0 become +0."""

    factors: Float32Array

    def apply(self, rows: Float32Array) -> Float32Array:
        edited = rows * self.factors
        edited[:, self.factors == 0] = 0.0  # a negative weight times 0 is -0
        return edited

    def describe(self) -> str:
        zeroed = int(np.count_nonzero(self.factors == 0))
        kept = float(self.factors[self.factors != 0][0])
        return f"{zeroed} of {len(self.factors)} columns become 0, the others times {kept:.4f}"


@dataclass(frozen=True)
class Plan:
    """One conversion: all its edits, ordered by shard and position, no two of which overlap, and OUT's files."""

    mask: HeadMask
    compensation: str
    edits: tuple[Edit, ...]
    files: tuple[OutputFile, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes in the rows that the edits rewrite."""
        return sum(edit.count * edit.tensor.row_bytes for edit in self.edits)

    @property
    def file_bytes(self) -> int:
        """Bytes of all files of OUT but the manifest."""
        return sum(file.size for file in self.files)

    def edits_in(self, piece: Piece) -> tuple[Edit, ...]:
        """The edits of a piece of a file, in the order of their rows."""
        if piece.tensor is not None:
            return tuple(edit for edit in self.edits if edit.tensor == piece.tensor)
        return tuple(edit for edit in self.edits if edit.tensor.shard == piece.source)

    def to_json(self) -> dict[str, Any]:
        """The plan for a script to read."""
        return {
            "compensation": self.compensation,
            "pruned_heads": self.mask.num_pruned,
            "rewritten_bytes": self.num_bytes,
            "files": {file.name: file.size for file in self.files},
            "edits": [
                {
                    "tensor": edit.tensor.name,
                    "shard": edit.tensor.shard,
                    "begin": edit.begin if edit.tensor.is_contiguous else None,
                    "end": edit.end if edit.tensor.is_contiguous else None,
                    "change": edit.describe(),
                }
                for edit in self.edits
            ],
        }


def make_plan(checkpoint: Checkpoint, mask: HeadMask, compensation: str, *, shard_bytes: int | None = None) -> Plan:
    """The edits that silence *mask*'s heads in *checkpoint* and fold *compensation* into its ``o_proj``.

    *shard_bytes* bounds the shards that are built anew, see :func:`~converter.rewrite.assembly.assemble`.

    For a pruned head h with rows r(h) = [h * head_dim, (h + 1) * head_dim): rows r(h) of ``q``, rows of a kv
    head whose query heads are all pruned in ``k`` and ``v``, and columns r(h) of ``o`` become zero. Only the
    columns of ``o`` silence a head for certain: zero q rows alone make its attention uniform.
    """
    geometry = checkpoint.geometry
    edits: list[Edit] = []
    for layer in mask.touched_layers:
        kv_heads = mask.pruned_kv_heads(layer, geometry)
        for projection, heads in (("q", mask.pruned[layer]), ("k", kv_heads), ("v", kv_heads)):
            for kind in ("weight", "bias"):
                rows = checkpoint.projection(layer, projection, kind)
                if rows is not None:
                    edits += _row_edits(rows, layer, projection, heads, geometry)
        output = checkpoint.output_projection(layer)
        factors = column_factors(mask, layer, geometry, compensation)
        edits.append(ColumnEdit(output, layer, "o", 0, output.shape[0], factors))
    edits.sort(key=lambda edit: (edit.tensor.shard, edit.begin))
    return Plan(mask, compensation, tuple(edits), assemble(checkpoint, shard_bytes))


def _row_edits(rows: Projection, layer: int, projection: str, heads: tuple[int, ...], geometry: Geometry) -> list[Edit]:
    """One edit per run of neighbouring heads."""
    edits: list[Edit] = []
    start = 0
    for end in range(1, len(heads) + 1):
        if end == len(heads) or heads[end] != heads[end - 1] + 1:
            first, count = heads[start] * geometry.head_dim, (end - start) * geometry.head_dim
            edits.append(RowEdit(rows.tensor, layer, projection, rows.first + first, count))
            start = end
    return edits
