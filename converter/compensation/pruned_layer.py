"""A layer that loses heads, as a compensation sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoint import Geometry
from ..checkpoint.dtypes import Float64Array
from .head_mix import HeadMix, Indices, columns_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class PrunedLayer:
    """Decoder layer *number*, which loses the heads *pruned*.

    *scale* is the factor that the mask itself gives to its kept heads, or None. *read_weight* reads the weight of
    projection ``o`` [hidden_size, columns] or ``v`` [kv rows, hidden_size] whole. *warn* is told, in a sentence, what
    a user should know. Products of its weights run on *device*.
    """

    number: int
    geometry: Geometry
    pruned: tuple[int, ...]
    scale: float | None
    read_weight: Callable[[str], Float64Array]
    warn: Callable[[str], None]
    device: torch.device | str = "cpu"

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """The heads that stay, sorted."""
        return tuple(head for head in range(self.geometry.num_heads) if head not in self.pruned)

    @cached_property
    def pruned_columns(self) -> Indices:
        """The columns of ``o_proj`` that belong to pruned heads."""
        return columns_of(self.pruned, self.geometry.head_dim)

    @cached_property
    def kept_columns(self) -> Indices:
        """The columns of ``o_proj`` that belong to kept heads."""
        return columns_of(self.kept, self.geometry.head_dim)

    @cached_property
    def weight_gram(self) -> torch.Tensor:
        """W^T W [columns, columns] of ``o_proj``: what turns a change of its inputs into one of its outputs."""
        import torch

        weight = torch.from_numpy(self.read_weight("o")).to(self.device)
        return weight.T @ weight

    def mix(
        self,
        factors: float | Float64Array,
        transfer: Float64Array | None = None,
        values: Float64Array | None = None,
    ) -> HeadMix:
        """The map with these *factors* of kept heads (one, or one each), a *transfer* and a mix of *values*."""
        per_head = np.zeros(self.geometry.num_heads, dtype=np.float32)
        per_head[list(self.kept)] = factors
        return HeadMix(
            self.geometry.head_dim, self.pruned, np.repeat(per_head, self.geometry.head_dim), transfer, values
        )
