"""Bare 0/1 flags, [layers][heads], from JSON or an array: only the caller knows what a 1 means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...checkpoint.geometry import Geometry
from ...choices import Polarity
from ...errors import MaskError, shown
from ..head_mask import HeadMask
from .layer_lists import pruned_by_flags

if TYPE_CHECKING:
    from ..schedules import Schedule


@dataclass(frozen=True)
class Hints:
    """The geometry always; *polarity* for 0/1 flags and *schedule* for scores, where the file needs them."""

    geometry: Geometry
    polarity: Polarity | None = None
    schedule: Schedule | None = None

    def needed_polarity(self) -> Polarity:
        """The polarity, of which the file does not speak; MaskError where it is not given."""
        if self.polarity is None:
            raise MaskError(
                "holds 0/1 flags and does not say which are pruned; say what a 1 means with "
                "`mask_polarity='keep'` or `mask_polarity='prune'`"
            )
        return self.polarity

    def refuse_polarity(self, what: str) -> None:
        """Raise MaskError if a polarity is given for a file of *what*, where it has nothing to say."""
        if self.polarity is not None:
            raise MaskError(f"holds {what}, so `mask_polarity` has nothing to say; leave it out")

    def refuse_schedule(self, what: str) -> None:
        """Raise MaskError if a schedule is given for a file of *what*, which says itself what is pruned."""
        if self.schedule is not None:
            raise MaskError(f"holds {what}, not scores; leave `rate` and `schedule` out")


def read_flag_rows(rows: Sequence[Any] | Mapping[int, Sequence[Any]], hints: Hints, what: str) -> tuple[HeadMask, str]:
    """The mask of flags that are a row per layer, or rows by layer, and in words how they were read.

    Raises:
        MaskError: not flags of this geometry, or the polarity is not given.
    """
    geometry = hints.geometry
    hints.refuse_schedule("0/1 flags")
    lists = rows if isinstance(rows, Mapping) else _by_layer(rows, hints)
    pruned_by_flags(lists, geometry, "prune")  # what is wrong whatever a 1 means is said first
    polarity = hints.needed_polarity()
    pruned = pruned_by_flags(lists, geometry, polarity)
    mask = HeadMask(geometry.num_heads, tuple(tuple(pruned[layer]) for layer in range(geometry.num_layers)))
    return mask, f"{what}, 1 = {'keep' if polarity == 'keep' else 'pruned'}"


def _by_layer(rows: Sequence[Any], hints: Hints) -> dict[int, Sequence[Any]]:
    num_layers = hints.geometry.num_layers
    for layer, row in enumerate(rows):
        if not isinstance(row, list):
            raise MaskError(f"layer {layer}: {shown(row)} is not a list of flags")
    if len(rows) != num_layers:
        raise MaskError(f"has flags of {len(rows)} layers, but the checkpoint has {num_layers}")
    return dict(enumerate(rows))
