"""Bare 0/1 flags, [layers][heads], from JSON or an array: masks whose polarity only the caller knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from converter.errors import MaskError, shown
from converter.mask.head_mask import HeadMask
from converter.mask.hints import Hints
from converter.mask.layer_lists import pruned_by_flags


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
