"""Where tensors stand in a file of weights, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file: it lies in the bytes [*begin*, *end*) from the start of the file.

    *strides* are in elements, for a tensor whose rows do not follow each other; None for one whose rows do.
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
