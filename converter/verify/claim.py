"""What a conversion claims: all that its checks are given."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..compensation import Fits
from ..mask import HeadMask


@dataclass(frozen=True, eq=False)
class Claim:
    """That *converted* is *original* without the heads of *mask*, with *fits* in their place.

    The files *own_files* are what OUT says itself: the model card's. They are not the original's, and only read.
    With *other_shards*, the weights may stand in other files than the original's, or in another order there.
    """

    original: Checkpoint
    converted: Checkpoint
    mask: HeadMask
    fits: Fits
    own_files: frozenset[str] = frozenset()
    other_shards: bool = False

    @property
    def rebuilt(self) -> bool:
        """Whether weights are compared tensor by tensor, as the files that hold them are not the original's."""
        return self.other_shards or self.original.is_torch
