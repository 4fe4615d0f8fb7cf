"""Reads JSON masks. The first rule of the table that a file follows picks the format.

===============  ===================================================================  =======================
format           recognised by                                                        means
===============  ===================================================================  =======================
native           ``"format": "s4convert-mask/1"``                                     listed = pruned
scores           see :mod:`s4convert.mask.formats.scores`                             need a schedule
S4 calibration   ``total_pruned_heads`` or ``total_heads`` beside ``pruned_heads``    1 = pruned
kept heads       ``components``                                                       listed = kept
listed rows      ``pruned_heads`` is a list of [layer, head] or [layer, head, score]  listed = pruned
listed heads     ``pruned_heads`` is an object of layers, or a bare object of layers  listed = pruned
head_mask list   a bare list with a list per layer                                    0/1, polarity from the caller
===============  ===================================================================  =======================

A list of 0/1 with as many entries as a layer has heads may be flags or head numbers. Only a polarity shows that it is
flags; without one, such a list is refused where the format allows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...checkpoint.geometry import Geometry
from ...errors import MaskError, shown
from ..checked_values import finite_number
from ..head_mask import NATIVE_FORMAT, HeadMask
from ..head_scores import SCORES_FORMAT
from ..making import prune_lowest, with_saliency
from ..schedules import describe
from .layer_lists import (
    SIZES,
    Hints,
    check_every_layer,
    check_layer,
    head_numbers,
    is_integer,
    layer_number,
    lists_by_layer,
    look_like_flags,
    make_mask,
    pruned_by_flags,
    read_flags,
)
from .scores import are_scores, read_scores


def read_json(content: Any, hints: Hints) -> tuple[HeadMask, str]:
    """(the mask that parsed JSON describes, in words how it was read); MaskError where it is malformed."""
    if isinstance(content, list):
        return read_flags(content, hints, "head_mask list")
    if not isinstance(content, dict):
        raise MaskError("is neither a JSON object nor a list with a list per layer; docs/masks.md lists the formats")
    if are_scores(content):
        return _scores(content, hints)
    if "format" in content:
        return _native(content, hints)
    if "total_pruned_heads" in content or "total_heads" in content:
        return _s4_calibration(content, hints)
    if "components" in content:
        return _kept_heads(content, hints)
    if isinstance(content.get("pruned_heads"), list):
        return _listed_rows(content, hints)
    return _listed_heads(content, hints)


def read_native(content: Any, geometry: Geometry) -> HeadMask:
    """The mask of *content* in the native format; MaskError where it is malformed or not of this geometry."""
    if not isinstance(content, dict) or content.get("format") != NATIVE_FORMAT:
        found = content.get("format") if isinstance(content, dict) else content
        raise MaskError(f"format is {shown(found)}; this version reads {NATIVE_FORMAT!r}")
    _check_fields(content, NATIVE_FORMAT, "format", "pruned", "scale", "provenance")
    for name in SIZES:
        if name not in content:
            raise MaskError(f"{name} is missing; {NATIVE_FORMAT} states it")
    _check_sizes(content, geometry)
    pruned = head_numbers(lists_by_layer(content.get("pruned"), "pruned", geometry), geometry)
    return make_mask(pruned, geometry, scale=_scale(content), provenance=content.get("provenance"))


def _native(content: dict[str, Any], hints: Hints) -> tuple[HeadMask, str]:
    if content["format"] != NATIVE_FORMAT:
        raise MaskError(
            f"format is {shown(content['format'])}; this version reads {NATIVE_FORMAT!r} and {SCORES_FORMAT!r}"
        )
    hints.refuse_schedule("a native mask of head numbers")
    hints.refuse_polarity("a native mask of head numbers")
    return read_native(content, hints.geometry), "native mask, listed = pruned"


def _scores(content: dict[str, Any], hints: Hints) -> tuple[HeadMask, str]:
    scores = read_scores(content, hints.geometry)
    hints.refuse_polarity("scores")
    if hints.schedule is None:
        raise MaskError("holds scores, not a mask; give `rate` and `schedule` (or `schedule='bands:...'` alone)")
    return with_saliency(prune_lowest(scores, hints.schedule), scores), f"scores, {describe(hints.schedule)}"


def _s4_calibration(content: dict[str, Any], hints: Hints) -> tuple[HeadMask, str]:
    geometry = hints.geometry
    _check_fields(content, "an S4 calibration file", "pruned_heads", "total_pruned_heads", "total_heads")
    _check_sizes(content, geometry)
    hints.refuse_schedule("an S4 calibration mask")
    if hints.polarity == "keep":
        raise MaskError("is an S4 calibration file (it has totals), where 1 = pruned; leave `mask_polarity='keep'` out")
    lists = lists_by_layer(content.get("pruned_heads"), "pruned_heads", geometry)
    for layer, flags in lists.items():
        for head, flag in enumerate(flags):
            if not is_integer(flag):
                raise MaskError(f"layer {layer}, head {head}: {shown(flag)} is neither 0 nor 1 (1 = pruned)")
    pruned = pruned_by_flags(lists, geometry, "prune")
    counted = {
        "total_pruned_heads": sum(len(heads) for heads in pruned.values()),
        "total_heads": geometry.num_layers * geometry.num_heads,
    }
    for name, count in counted.items():
        if not is_integer(content.get(name)) or content[name] != count:
            raise MaskError(f"{name} is {shown(content.get(name))}, but the lists add up to {count}")
    return make_mask(pruned, geometry), "S4 calibration, 1 = pruned"


def _kept_heads(content: dict[str, Any], hints: Hints) -> tuple[HeadMask, str]:
    geometry = hints.geometry
    _check_fields(content, "a components file", "components")
    _check_sizes(content, geometry)
    hints.refuse_schedule("kept heads")
    components = content["components"]
    if not isinstance(components, dict) or not isinstance(components.get("attention_heads"), dict):
        raise MaskError("components has no object attention_heads")
    for name in components:
        if name != "attention_heads":
            raise MaskError(f"components has {shown(name)}, but only attention_heads can be pruned here; remove it")
    heads = components["attention_heads"]
    for name in heads:
        if name not in ("kept", "total"):
            raise MaskError(f"attention_heads has {shown(name)}, which is not known; remove it")
    if not is_integer(heads.get("total")) or heads["total"] != geometry.num_heads:
        raise MaskError(f"total is {shown(heads.get('total'))}, but the checkpoint has {geometry.num_heads} heads")
    kept = lists_by_layer(heads.get("kept"), "kept", geometry)
    check_every_layer(kept, geometry, "list of kept heads")
    if hints.polarity == "prune":
        raise MaskError("lists kept heads, so a 1 cannot mean pruned; leave `mask_polarity='prune'` out")
    if hints.polarity == "keep":
        return make_mask(pruned_by_flags(kept, geometry, "keep"), geometry), "kept heads, 1 = kept"
    if all(look_like_flags(heads, geometry) for heads in kept.values()):
        # As head numbers, they would keep every head, or name one twice.
        raise _ambiguous(0, kept[0], "keep")
    numbers = head_numbers(kept, geometry)
    everything = range(geometry.num_heads)
    pruned = {layer: sorted(set(everything) - set(numbers[layer])) for layer in numbers}
    return make_mask(pruned, geometry), "kept heads, listed = kept"


def _listed_rows(content: dict[str, Any], hints: Hints) -> tuple[HeadMask, str]:
    geometry, rows = hints.geometry, content["pruned_heads"]
    _check_fields(content, "a pruned_heads file", "pruned_heads")
    _check_sizes(content, geometry)
    if hints.polarity is not None:
        return read_flags(rows, hints, "pruned_heads flags")
    hints.refuse_schedule("listed heads")
    lists = [row if isinstance(row, list) else [] for row in rows]
    if rows and len(rows) == geometry.num_layers and all(look_like_flags(row, geometry) for row in lists):
        raise _ambiguous(0, rows[0])
    pruned: dict[int, list[Any]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) not in (2, 3):
            raise MaskError(f"row {number}: {shown(row)} is neither [layer, head] nor [layer, head, score]")
        try:
            layer = check_layer(row[0], geometry)
            pruned.setdefault(layer, []).append(row[1])
            head_numbers({layer: pruned[layer][-1:]}, geometry)
            if len(row) == 3:
                finite_number(row[2], f"layer {layer}, head {row[1]}", "score")
        except MaskError as error:
            raise MaskError(f"row {number}: {error}") from error
    return make_mask(head_numbers(pruned, geometry), geometry), "listed rows, listed = pruned"


def _listed_heads(content: dict[str, Any], hints: Hints) -> tuple[HeadMask, str]:
    geometry = hints.geometry
    _check_sizes(content, geometry)
    if "pruned_heads" in content:
        _check_fields(content, "a pruned_heads file", "pruned_heads")
        lists = lists_by_layer(content["pruned_heads"], "pruned_heads", geometry)
    else:
        bare = {name: value for name, value in content.items() if name not in SIZES}
        lists = lists_by_layer(bare, "the mask", geometry)
    if hints.polarity is not None:
        try:
            return read_flags(lists, hints, "flags by layer")
        except MaskError as error:
            if any(look_like_flags(heads, geometry) for heads in lists.values()):
                raise
            raise MaskError(f"{error}; for listed head numbers leave `mask_polarity` out") from error
    hints.refuse_schedule("listed heads")
    for layer, heads in lists.items():
        if look_like_flags(heads, geometry):
            raise _ambiguous(layer, heads)
    return make_mask(head_numbers(lists, geometry), geometry), "listed heads, listed = pruned"


def _ambiguous(layer: int, heads: Any, polarity: str = "keep|prune") -> MaskError:
    return MaskError(
        f"layer {layer}: {shown(heads)} may be flags or head numbers; for flags say what a 1 means with "
        f"`mask_polarity={polarity!r}` (S4 calibration files have total_pruned_heads and total_heads), for head "
        f"numbers use the native format ({NATIVE_FORMAT})"
    )


def _check_fields(content: Mapping[str, Any], what: str, *names: str) -> None:
    """Raise MaskError at a field that *what* does not have: it may change the meaning of the others."""
    for name in content:
        if name not in names and name not in SIZES:
            raise MaskError(f"{shown(name)} is not a field of {what}; remove it")


def _check_sizes(content: Mapping[str, Any], geometry: Geometry) -> None:
    for name in SIZES:
        expected = getattr(geometry, name)
        if name in content and (not is_integer(content[name]) or content[name] != expected):
            raise MaskError(f"{name} is {shown(content[name])}, but the checkpoint has {expected}")


def _scale(content: Mapping[str, Any]) -> Mapping[int, Any] | None:
    if "scale" not in content:
        return None
    if not isinstance(content["scale"], dict):
        raise MaskError("scale is not an object that maps layers to factors")
    factors = {}
    for key, factor in content["scale"].items():
        try:
            factors[layer_number(key)] = factor
        except MaskError as error:
            raise MaskError(f"scale: {error}") from error
    return factors
