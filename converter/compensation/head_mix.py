"""What every compensation comes down to: a linear map on the concatenated outputs x of a layer's heads.

With K the columns of kept heads and P those of pruned ones, T x has the kept part ``factors_K * x_K`` and the pruned
part ``transfer @ x_K``. Folded into ``o_proj``, W' = W T: its kept columns are ``W_K * factors_K + W_P @ transfer``
and its pruned ones 0. Each row of W' needs that row of W alone, so rows can be rewritten block by block; and a hook on
the input of ``o_proj`` that applies T computes the same as W'.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from ..checkpoint.dtypes import Float32Array, Float64Array

if TYPE_CHECKING:
    import torch

# Rows multiplied at a time. A product's last bits may depend on the number of rows in it, so rows are always cut up at
# the same places: the bytes written must not depend on how large a block somebody read.
ROW_BLOCK = 64

Indices = npt.NDArray[np.intp]


def columns_of(heads: Iterable[int], head_dim: int) -> Indices:
    """The columns of ``o_proj`` (and rows of ``q_proj``) that belong to *heads*, in their order."""
    starts = np.fromiter(heads, dtype=np.intp).reshape(-1, 1) * head_dim
    return (starts + np.arange(head_dim)).reshape(-1)


@dataclass(frozen=True, eq=False)
class HeadMix:
    """The map T of one layer that loses the heads *pruned*; heads are *head_dim* wide.

    *factors* [num_heads * head_dim] has 0 for pruned columns. *transfer* [pruned columns, kept columns], where there
    is one, is what stands in for the pruned heads' outputs. *values* [num_heads, num_heads], where there is one, is
    applied to the heads' values, the output of ``v_proj``, first: value head k becomes the sum of values[k, h] times
    value head h; only without grouped-query attention.
    """

    head_dim: int
    pruned: tuple[int, ...]
    factors: Float32Array
    transfer: Float64Array | None = None
    values: Float64Array | None = None

    @property
    def num_heads(self) -> int:
        """All heads, kept and pruned."""
        return len(self.factors) // self.head_dim

    @property
    def head_factors(self) -> list[float]:
        """The factor of each head [num_heads]."""
        return [float(factor) for factor in self.factors[:: self.head_dim]]

    @property
    def is_diagonal(self) -> bool:
        """Whether each column of ``o_proj`` is merely multiplied by its factor."""
        return self.transfer is None

    @cached_property
    def only_factor(self) -> float | None:
        """By which every kept column is multiplied, where that is all that becomes of it and it is one for all."""
        factors = self.factors[self.kept_columns]
        if self.transfer is not None or not len(factors) or (factors != factors[0]).any():
            return None
        return float(factors[0])

    @cached_property
    def pruned_columns(self) -> Indices:
        """The columns of pruned heads."""
        return columns_of(self.pruned, self.head_dim)

    @cached_property
    def kept_columns(self) -> Indices:
        """All others."""
        return np.delete(np.arange(len(self.factors)), self.pruned_columns)

    @overload
    def apply_to_rows(self, rows: Float32Array) -> Float32Array | Float64Array: ...

    @overload
    def apply_to_rows(self, rows: torch.Tensor) -> torch.Tensor: ...

    def apply_to_rows(self, rows: Any) -> Any:
        """Rows [rows, columns] of W, in numpy or torch, to the same rows of W T.

        A diagonal map multiplies in float32. A dense one gives float64, still to be rounded; *rows* must then begin
        at a multiple of :data:`ROW_BLOCK` in the tensor for its last bits to be the same every time.
        """
        factors = _beside(rows, self.factors)
        pruned, kept = (_beside(rows, columns) for columns in (self.pruned_columns, self.kept_columns))
        if self.transfer is None:
            edited = rows * factors
            edited[:, pruned] = 0.0  # a negative weight times 0 is -0
            return edited
        mixed, transfer = _zeros(rows), _beside(rows, self.transfer)
        for first in range(0, len(rows), ROW_BLOCK):
            block = _in_float64(rows[first : first + ROW_BLOCK])
            mixed[first : first + ROW_BLOCK, kept] = block[:, kept] * factors[kept] + block[:, pruned] @ transfer
        return mixed

    @overload
    def apply_to_heads(self, heads: Float64Array) -> Float64Array: ...

    @overload
    def apply_to_heads(self, heads: torch.Tensor) -> torch.Tensor: ...

    def apply_to_heads(self, heads: Any) -> Any:
        """T x for every x in *heads* [..., columns], in the same dtype; a transfer is computed in float64."""
        mixed = heads * _beside(heads, self.factors)
        if self.transfer is not None:
            pruned, kept = (_beside(heads, columns) for columns in (self.pruned_columns, self.kept_columns))
            replaced = _in_float64(heads[..., kept]) @ _beside(heads, self.transfer).T
            mixed[..., pruned] = replaced if isinstance(heads, np.ndarray) else replaced.to(heads.dtype)
        return mixed

    @overload
    def apply_to_values(self, rows: Float32Array) -> Float64Array: ...

    @overload
    def apply_to_values(self, rows: torch.Tensor) -> torch.Tensor: ...

    def apply_to_values(self, rows: Any) -> Any:
        """All rows [num_heads * head_dim, ...] of ``v_proj``'s weight or bias, in numpy or torch, mixed in float64.

        Those of a head that takes from no other stay bit for bit.
        """
        mixed = _in_float64(rows)
        if self.values is None:
            return mixed
        by_head = rows.reshape(self.num_heads, self.head_dim, -1)
        for head in self.mixed_values:
            total = _zeros(by_head[head])
            for source in np.flatnonzero(self.values[head]):
                total += float(self.values[head, source]) * _in_float64(by_head[source])
            mixed.reshape(by_head.shape)[head] = total
        return mixed

    @cached_property
    def mixed_values(self) -> tuple[int, ...]:
        """The kept heads whose values take from other heads, or are multiplied."""
        if self.values is None:
            return ()
        changed = np.flatnonzero((self.values != np.eye(self.num_heads)).any(axis=1))
        return tuple(int(head) for head in changed if head not in self.pruned)


def _beside(rows: Any, array: npt.NDArray[Any]) -> Any:
    """*array* as what can be computed with *rows*: itself, or a tensor on the same device."""
    if isinstance(rows, np.ndarray):
        return array
    import torch

    return torch.from_numpy(array).to(rows.device)


def _in_float64(rows: Any) -> Any:
    """A copy of *rows*, which may be a tensor."""
    return rows.astype(np.float64) if isinstance(rows, np.ndarray) else rows.double()


def _zeros(rows: Any) -> Any:
    """Zeros in float64, of the shape of *rows*, and a tensor where they are one."""
    return np.zeros(rows.shape, np.float64) if isinstance(rows, np.ndarray) else rows.new_zeros(rows.shape).double()
