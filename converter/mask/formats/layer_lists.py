"""What mask files are made of: layers by number, head numbers, and 0/1 flags; each checked by layer and head."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint.geometry import Geometry
from ...choices import Polarity
from ...errors import MaskError, shown

Pruned = dict[int, list[int]]  # the pruned heads of each layer that is named

_LAYER_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")  # one spelling per layer


def is_layer_number(key: str) -> bool:
    """Whether the name *key* of a JSON object means a layer."""
    return bool(_LAYER_NUMBER.fullmatch(key))


def layer_number(key: str) -> int:
    """The layer that the name *key* of a JSON object means; MaskError where it is no layer number."""
    if not is_layer_number(key):
        raise MaskError(f"{shown(key)} is not a layer number")
    return int(key)


def check_layer(layer: Any, geometry: Geometry) -> int:
    """*layer*, if the model has it; MaskError otherwise."""
    if not is_integer(layer):
        raise MaskError(f"{shown(layer)} is not a layer number")
    if not 0 <= layer < geometry.num_layers:
        raise MaskError(f"layer {shown(layer)}: out of range, the checkpoint has layers 0 to {geometry.num_layers - 1}")
    return int(layer)


def lists_by_layer(value: Any, name: str, geometry: Geometry) -> dict[int, list[Any]]:
    """The lists of the JSON object *value*, by layer; *name* is what a message calls it."""
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
    """*lists* as head numbers, each once and within the model's range."""
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
    """Raise MaskError unless every layer has an entry; *what* says what a layer needs."""
    for layer in range(geometry.num_layers):
        if layer not in lists:
            raise MaskError(f"layer {layer}: missing; each of the {geometry.num_layers} layers needs its {what}")


def pruned_by_flags(lists: Mapping[int, Sequence[Any]], geometry: Geometry, polarity: Polarity) -> Pruned:
    """The heads that 0/1 flags [layers][heads] prune: those with 1 where *polarity* is prune, with 0 where keep."""
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
    """0 or 1, as an integer, a fraction (projects save masks as floats) or a boolean."""
    return isinstance(value, int | float) and value in (0, 1)


def is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
