"""The place of a tensor: its bytes in a file of weights of any format, and its shard in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, in the bytes [*begin*, *end*) from the start of the file.

    *strides* are in elements, and None where the tensor is contiguous.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    num_bytes: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class WeightFile:
    """A file of weights; *entries* are in the order of their data."""

    entries: tuple[TensorEntry, ...]
    file_size: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and the shard (a file name inside the checkpoint) that holds it."""

    entry: TensorEntry
    shard: str

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def is_contiguous(self) -> bool:
        """Whether its rows follow each other in the shard, without gaps."""
        return self.entry.strides is None

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def num_rows(self) -> int:
        """The size of the first axis; a scalar has one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """The bytes of one row; 0 for an empty tensor."""
        return self.entry.num_bytes // self.num_rows if self.num_rows else 0


@dataclass(frozen=True)
class Projection:
    """A ``weight`` or ``bias`` of projection ``q``/``k``/``v``/``o``: rows [*first*, *first* + *count*) of *tensor*."""

    tensor: StoredTensor
    first: int
    count: int
