"""The parts of mask files, checked against the model's geometry: layer numbers, head numbers, and 0/1 flags."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...checkpoint.geometry import Geometry
from ...choices import Polarity
from ...errors import MaskError, shown
from ..head_mask import HeadMask
from ..schedules import Schedule

SIZES = ("num_layers", "num_heads")  # the fields that any file may state

Pruned = dict[int, list[int]]  # the pruned heads of the layers that a file names

_LAYER_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")  # one spelling per layer


@dataclass(frozen=True)
class Hints:
    """What the caller says of a mask file: the *polarity* of 0/1 flags, and the *schedule* for scores."""

    geometry: Geometry
    polarity: Polarity | None = None
    schedule: Schedule | None = None

    def refuse_polarity(self, what: str) -> None:
        """Raise MaskError where a polarity is given for a file of *what*, which has no use for it."""
        if self.polarity is not None:
            raise MaskError(f"holds {what}, so `mask_polarity` does not apply; leave it out")

    def refuse_schedule(self, what: str) -> None:
        """Raise MaskError where a schedule is given for a file of *what*, which is no file of scores."""
        if self.schedule is not None:
            raise MaskError(f"holds {what}, not scores; leave `rate` and `schedule` out")


def make_mask(
    pruned: Pruned, geometry: Geometry, *, scale: Mapping[int, Any] | None = None, provenance: Any = None
) -> HeadMask:
    """The mask that prunes the heads *pruned*."""
    heads = tuple(tuple(sorted(pruned.get(layer, ()))) for layer in range(geometry.num_layers))
    return HeadMask(geometry.num_heads, heads, scale, provenance)


def read_flags(rows: Sequence[Any] | Mapping[int, Sequence[Any]], hints: Hints, what: str) -> tuple[HeadMask, str]:
    """(the mask of 0/1 flags, in words how they were read); *rows* are [layers][heads], or map layers to lists."""
    geometry = hints.geometry
    hints.refuse_schedule("0/1 flags")
    lists = rows if isinstance(rows, Mapping) else _rows_by_layer(rows, geometry)
    pruned_by_flags(lists, geometry, "prune")  # first tell what is wrong with either polarity
    if hints.polarity is None:
        raise MaskError(
            "holds 0/1 flags and does not say which are pruned; say what a 1 means with "
            "`mask_polarity='keep'` or `mask_polarity='prune'`"
        )
    mask = make_mask(pruned_by_flags(lists, geometry, hints.polarity), geometry)
    return mask, f"{what}, 1 = {'keep' if hints.polarity == 'keep' else 'pruned'}"


def _rows_by_layer(rows: Sequence[Any], geometry: Geometry) -> dict[int, Sequence[Any]]:
    for layer, row in enumerate(rows):
        if not isinstance(row, list):
            raise MaskError(f"layer {layer}: {shown(row)} is not a list of flags")
    if len(rows) != geometry.num_layers:
        raise MaskError(f"has flags of {len(rows)} layers, but the checkpoint has {geometry.num_layers}")
    return dict(enumerate(rows))


def is_layer_number(key: str) -> bool:
    """Whether the name *key* in a JSON object is a layer number."""
    return bool(_LAYER_NUMBER.fullmatch(key))


def layer_number(key: str) -> int:
    """The layer that the name *key* in a JSON object stands for; MaskError where it is no layer number."""
    if not is_layer_number(key):
        raise MaskError(f"{shown(key)} is not a layer number")
    return int(key)


def check_layer(layer: Any, geometry: Geometry) -> int:
    """*layer* where the model has it; MaskError otherwise."""
    if not is_integer(layer):
        raise MaskError(f"{shown(layer)} is not a layer number")
    if not 0 <= layer < geometry.num_layers:
        raise MaskError(f"layer {shown(layer)}: out of range, the checkpoint has layers 0 to {geometry.num_layers - 1}")
    return int(layer)


def lists_by_layer(value: Any, name: str, geometry: Geometry) -> dict[int, list[Any]]:
    """The lists of the JSON object *value* by layer; messages call it *name*."""
    if not isinstance(value, dict):
        raise MaskError(f"{name} is not an object that maps layers to lists of heads")
    lists: dict[int, list[Any]] = {}
    for key, heads in value.items():
        layer = check_layer(layer_number(key), geometry)
        if not isinstance(heads, list):
            raise MaskError(f"layer {layer}: {shown(heads)} is not a list")
        lists[layer] = heads
    return lists


def head_numbers(lists: Mapping[int, Sequence[Any]], geometry: Geometry) -> Pruned:
    """*lists* as sorted head numbers; MaskError where one is out of range or listed twice."""
    for layer, heads in lists.items():
        seen = set()
        for head in heads:
            if not is_integer(head):
                raise MaskError(f"layer {layer}: {shown(head)} is not a head number")
            if not 0 <= head < geometry.num_heads:
                last = geometry.num_heads - 1
                raise MaskError(
                    f"layer {layer}, head {shown(head)}: out of range, the checkpoint has heads 0 to {last}"
                )
            if head in seen:
                raise MaskError(f"layer {layer}, head {head}: listed twice")
            seen.add(head)
    return {layer: sorted(heads) for layer, heads in lists.items()}


def check_every_layer(lists: Mapping[int, object], geometry: Geometry, what: str) -> None:
    """Raise MaskError unless every layer has an entry in *lists*; *what* names the entry."""
    for layer in range(geometry.num_layers):
        if layer not in lists:
            raise MaskError(f"layer {layer}: missing; each of the {geometry.num_layers} layers needs its {what}")


def pruned_by_flags(lists: Mapping[int, Sequence[Any]], geometry: Geometry, polarity: Polarity) -> Pruned:
    """The heads that the 0/1 flags of every layer prune; a 1 means *polarity*."""
    check_every_layer(lists, geometry, "flags")
    wanted = 1 if polarity == "prune" else 0
    pruned: Pruned = {}
    for layer, flags in lists.items():
        if len(flags) != geometry.num_heads:
            raise MaskError(f"layer {layer}: has {len(flags)} flags for {geometry.num_heads} heads")
        for head, flag in enumerate(flags):
            if not is_flag(flag):
                raise MaskError(f"layer {layer}, head {head}: {shown(flag)} is neither 0 nor 1")
        pruned[layer] = [head for head, flag in enumerate(flags) if flag == wanted]
    return pruned


def look_like_flags(heads: Sequence[Any], geometry: Geometry) -> bool:
    """Whether a list may be the 0/1 flags of a whole layer."""
    return len(heads) == geometry.num_heads and all(is_flag(head) for head in heads)


def is_flag(value: Any) -> bool:
    """Whether *value* is 0 or 1, as an integer, a float or a boolean."""
    return isinstance(value, int | float) and value in (0, 1)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
