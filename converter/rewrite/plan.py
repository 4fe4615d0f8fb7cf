"""The plan: every edit that a mask asks of a checkpoint, by tensor and byte range. Pure: nothing is read or written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint, Projection, StoredTensor
from ..checkpoint.geometry import Geometry
from ..compensation import ROW_BLOCK, Fits, HeadMix
from ..compensation.training import TrainedRows
from ..mask import HeadMask
from .assembly import OutputFile, Piece


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

    def rows_per_block(self, block_bytes: int) -> int:
        """How many rows to transform at a time: about *block_bytes* of them, cut up at the same rows every time."""
        return max(1, block_bytes // self.tensor.row_bytes // ROW_BLOCK) * ROW_BLOCK

    @abstractmethod
    def transform(self, rows: Any, at: int = 0) -> Any:
        """What *rows* in float32 become, still to be rounded to the stored dtype: in float32, or in float64.

        They are an array of numpy, or a tensor of torch, and so is the result. They are :meth:`rows_per_block` rows at
        a time, or all of them; the first of them is number *at* of the edit's.
        """

    @abstractmethod
    def describe(self) -> str:
        """The edit in words."""


@dataclass(frozen=True)
class RowEdit(Edit):
    """The rows become zero."""

    def transform(self, rows: Any, at: int = 0) -> Any:
        return rows - rows  # +0, in numpy and in torch, of every finite number

    def describe(self) -> str:
        return f"rows {self.first}-{self.first + self.count - 1} become 0"


@dataclass(frozen=True)
class MixEdit(Edit):
    """A change by the layer's *mix*, which is None where it has not been fitted yet: such a plan can only be shown.

    *change* says in words what becomes of rows or columns of kept heads.
    """

    mix: HeadMix | None
    num_zeroed: int
    change: str

    @property
    def fitted(self) -> HeadMix:
        """The mix, which a plan that is carried out has."""
        assert self.mix is not None, "a plan without fits can only be shown"
        return self.mix


@dataclass(frozen=True)
class ValueEdit(MixEdit):
    """The rows, all of a ``v`` projection, are mixed by heads; those of pruned heads become 0."""

    def rows_per_block(self, block_bytes: int) -> int:
        return self.count  # a head takes from others, wherever they stand

    def transform(self, rows: Any, at: int = 0) -> Any:
        mixed = self.fitted.apply_to_values(rows)
        mixed[self.fitted.pruned_columns] = 0.0
        return mixed

    def describe(self) -> str:
        return f"{self.num_zeroed} of {self.count} rows become 0, the others {self.change}"


@dataclass(frozen=True)
class ColumnEdit(MixEdit):
    """The columns of ``o_proj`` are mixed by heads; those of pruned heads become +0."""

    def transform(self, rows: Any, at: int = 0) -> Any:
        return self.fitted.apply_to_rows(rows)

    def describe(self) -> str:
        return f"{self.num_zeroed} of {self.tensor.shape[1]} columns become 0, the others {self.change}"


@dataclass(frozen=True)
class TrainedEdit(Edit):
    """The rows become those that a training made, *trained*; None where it has not been yet. *zeroed* says of what."""

    trained: TrainedRows | None
    zeroed: str

    def transform(self, rows: Any, at: int = 0) -> Any:
        assert self.trained is not None, "a plan without fits can only be shown"
        values = self.trained.values(at, len(rows))
        if isinstance(rows, np.ndarray):
            return values
        import torch

        return torch.from_numpy(values).to(rows.device)

    def describe(self) -> str:
        return f"{self.zeroed} become 0, the others are trained"


@dataclass(frozen=True)
class Plan:
    """One conversion: all its edits, ordered by shard and position, no two of which overlap, and OUT's files."""

    mask: HeadMask
    fits: Fits
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
            "compensation": self.fits.mode,
            "heads": self.mask.realised_json(),
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


def make_plan(checkpoint: Checkpoint, mask: HeadMask, fits: Fits, files: tuple[OutputFile, ...]) -> Plan:
    """The edits that silence *mask*'s heads in *checkpoint*'s *files* and fold *fits* into its ``o_proj``.

    For a pruned head h with rows r(h) = [h * head_dim, (h + 1) * head_dim): rows r(h) of ``q``, rows of a kv
    head whose query heads are all pruned in ``k`` and ``v``, and columns r(h) of ``o`` become zero. Only the
    columns of ``o`` silence a head for certain: zero q rows alone make its attention uniform. What a training made
    has these zeros already.
    """
    geometry = checkpoint.geometry
    edits: list[Edit] = []
    for layer in mask.touched_layers:
        trained = fits.trained.get(layer, {})
        pruned, kv_heads = mask.pruned[layer], mask.pruned_kv_heads(layer, geometry)
        mix, num_zeroed = fits.mixes.get(layer), len(pruned) * geometry.head_dim
        for projection, heads in (("q", pruned), ("k", kv_heads), ("v", kv_heads)):
            for kind in ("weight", "bias"):
                rows = checkpoint.projection(layer, projection, kind)
                if rows is None:
                    continue
                if projection in fits.trains and kind == "weight":
                    zeroed = f"{len(heads) * geometry.head_dim} of {rows.count} rows"
                    given = trained.get(projection)
                    edits.append(TrainedEdit(rows.tensor, layer, projection, rows.first, rows.count, given, zeroed))
                elif projection == "v" and fits.description.mixes_values:
                    change = "take from those like them"
                    edits.append(ValueEdit(rows.tensor, layer, "v", rows.first, rows.count, mix, num_zeroed, change))
                else:
                    edits += _row_edits(rows, layer, projection, heads, geometry)
        output = checkpoint.output_projection(layer)
        if fits.trains:
            zeroed = f"{num_zeroed} of {output.shape[1]} columns"
            edits.append(TrainedEdit(output, layer, "o", 0, output.shape[0], trained.get("o"), zeroed))
        else:
            edits.append(ColumnEdit(output, layer, "o", 0, output.shape[0], mix, num_zeroed, fits.change(layer)))
    edits.sort(key=lambda edit: (edit.tensor.shard, edit.begin))
    return Plan(mask, fits, tuple(edits), files)


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
