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
    """

    original: Checkpoint
    converted: Checkpoint
    mask: HeadMask
    fits: Fits
    own_files: frozenset[str] = frozenset()
