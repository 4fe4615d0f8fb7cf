"""What a conversion claims: all that its checks are given."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..compensation import Fits
from ..mask import HeadMask


@dataclass(frozen=True, eq=False)
class Terms:
    """What becomes of *original*: it loses the heads of *mask* and has *fits* in their place.

    The files *own_files* are what OUT says itself: the model card's. They are not the original's, and only read.
    With *other_shards*, the weights may stand in other files than the original's, or in another order there.
    """

    original: Checkpoint
    mask: HeadMask
    fits: Fits
    own_files: frozenset[str] = frozenset()
    other_shards: bool = False

    @property
    def rebuilt(self) -> bool:
        """Whether weights are compared tensor by tensor, as the files that hold them are not the original's."""
        return self.other_shards or self.original.is_torch


@dataclass(frozen=True, eq=False)
class Claim:
    """That *converted* is what :class:`Terms` say of *original*, *mask*, *fits* and *own_files*."""

    original: Checkpoint
    converted: Checkpoint
    mask: HeadMask
    fits: Fits
    own_files: frozenset[str] = frozenset()
    other_shards: bool = False

    @property
    def terms(self) -> Terms:
        return Terms(self.original, self.mask, self.fits, self.own_files, self.other_shards)
