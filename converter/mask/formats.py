"""Reading mask files. The format is recognised by rule, never guessed; what stays ambiguous is refused.

==================  ==============================================================  ==================
format              recognised by                                                   a number means
==================  ==============================================================  ==================
native              ``"format": "s4convert-mask/1"``                                a pruned head
S4 calibration      ``pruned_heads`` beside ``total_pruned_heads``/``total_heads``  1 = pruned
listed heads        ``pruned_heads`` alone, or a bare object of layers              a pruned head
==================  ==============================================================  ==================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from converter import strict_json
from converter.checkpoint.geometry import Geometry
from converter.errors import MaskError, StorageError
from converter.mask.head_mask import NATIVE_FORMAT, HeadMask

_LAYER_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")  # one spelling per layer


def load_mask(path: Path | str, geometry: Geometry) -> tuple[HeadMask, str]:
    """Read the mask file *path* for a model of *geometry*; the second value says in words how it was read.

    Raises:
        MaskError: malformed, ambiguous, without effect, or not of this geometry.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        content = strict_json.parse(text)
    except ValueError as error:
        raise MaskError(f"{path}: is not a JSON mask ({error})") from error
    try:
        return parse_mask(content, geometry)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error


def parse_mask(content: Any, geometry: Geometry) -> tuple[HeadMask, str]:
    """The mask that the parsed JSON *content* describes, and in words how it was read.

    Raises:
        MaskError: malformed, ambiguous, without effect, or not of this geometry.
    """
    if not isinstance(content, dict):
        raise MaskError("is not a JSON object; see the README for the mask formats")
    scale: Mapping[int, float] | None = None
    provenance = None
    if "format" in content:
        name, listed = "native mask, listed = pruned", _native(content, geometry)
        scale = _scale(content)
        provenance = content.get("provenance")
        if provenance is not None and not isinstance(provenance, dict):
            raise MaskError("provenance is not an object")
    elif {"total_pruned_heads", "total_heads"} & set(content):
        name, listed = "S4 calibration, 1 = pruned", _s4_calibration(content, geometry)
    else:
        name, listed = "listed heads, listed = pruned", _listed_heads(content, geometry)
    mask = HeadMask(
        num_heads=geometry.num_heads,
        pruned=tuple(tuple(sorted(listed.get(layer, ()))) for layer in range(geometry.num_layers)),
        scale=scale,
        provenance=provenance,
    )
    mask.check(geometry)
    return mask, f"{name}, {mask.num_pruned} of {mask.num_layers * mask.num_heads} heads"


def _native(content: Mapping[str, Any], geometry: Geometry) -> dict[int, list[int]]:
    if content["format"] != NATIVE_FORMAT:
        raise MaskError(f"format is {content['format']!r}; this version reads {NATIVE_FORMAT!r}")
    for name, expected in (("num_layers", geometry.num_layers), ("num_heads", geometry.num_heads)):
        if not _is_integer(content.get(name)) or content[name] != expected:
            raise MaskError(f"{name} is {content.get(name)!r}, but the checkpoint has {expected}")
    return _head_numbers(_layers(content.get("pruned"), "pruned", geometry), geometry)


def _s4_calibration(content: Mapping[str, Any], geometry: Geometry) -> dict[int, list[int]]:
    layers = _layers(content.get("pruned_heads"), "pruned_heads", geometry)
    if set(layers) != set(range(geometry.num_layers)):
        raise MaskError(f"has {len(layers)} layers, but the checkpoint has {geometry.num_layers}")
    pruned = {}
    for layer, flags in layers.items():
        if len(flags) != geometry.num_heads:
            raise MaskError(f"layer {layer}: has {len(flags)} flags for {geometry.num_heads} heads")
        for head, flag in enumerate(flags):
            if not _is_integer(flag) or flag not in (0, 1):
                raise MaskError(f"layer {layer}, head {head}: {flag!r} is neither 0 nor 1 (1 = pruned)")
        pruned[layer] = [head for head, flag in enumerate(flags) if flag]
    counted = {
        "total_pruned_heads": sum(len(heads) for heads in pruned.values()),
        "total_heads": geometry.num_layers * geometry.num_heads,
    }
    for name, count in counted.items():
        if not _is_integer(content.get(name)) or content[name] != count:
            raise MaskError(f"{name} is {content.get(name)!r}, but the lists add up to {count}")
    return pruned


def _listed_heads(content: Mapping[str, Any], geometry: Geometry) -> dict[int, list[int]]:
    layers = _layers(content.get("pruned_heads", content), "pruned_heads", geometry)
    for layer, heads in layers.items():
        if len(heads) == geometry.num_heads and all(_is_integer(head) and head in (0, 1) for head in heads):
            raise MaskError(
                f"layer {layer}: {heads} may be flags or head numbers; add total_pruned_heads and total_heads "
                f"for flags (1 = pruned), or use the native format ({NATIVE_FORMAT}) for head numbers"
            )
    return _head_numbers(layers, geometry)


def _layers(value: Any, name: str, geometry: Geometry) -> dict[int, Sequence[Any]]:
    if not isinstance(value, dict):
        raise MaskError(f"{name} is not an object that maps layers to lists of heads")
    layers: dict[int, Sequence[Any]] = {}
    for key, heads in value.items():
        if not _LAYER_NUMBER.fullmatch(key):
            raise MaskError(f"{key[:40]!r} is not a layer number")
        layer = int(key)
        if layer >= geometry.num_layers:
            raise MaskError(f"layer {layer}: out of range, the checkpoint has layers 0 to {geometry.num_layers - 1}")
        if not isinstance(heads, list):
            raise MaskError(f"layer {layer}: {heads!r} is not a list")
        layers[layer] = heads
    return layers


def _head_numbers(layers: Mapping[int, Sequence[Any]], geometry: Geometry) -> dict[int, list[int]]:
    for layer, heads in layers.items():
        for head in heads:
            if not _is_integer(head):
                raise MaskError(f"layer {layer}: {head!r} is not a head number")
            if not 0 <= head < geometry.num_heads:
                raise MaskError(
                    f"layer {layer}, head {head}: out of range, the checkpoint has heads 0 to {geometry.num_heads - 1}"
                )
            if heads.count(head) > 1:
                raise MaskError(f"layer {layer}, head {head}: listed twice")
    return {layer: list(heads) for layer, heads in layers.items()}


def _scale(content: Mapping[str, Any]) -> Mapping[int, float] | None:
    if "scale" not in content:
        return None
    if not isinstance(content["scale"], dict):
        raise MaskError("scale is not an object that maps layers to factors")
    for key, factor in content["scale"].items():
        if not _LAYER_NUMBER.fullmatch(key):
            raise MaskError(f"scale: {key[:40]!r} is not a layer number")
        if not isinstance(factor, int | float) or isinstance(factor, bool):
            raise MaskError(f"scale, layer {key}: {factor!r} is not a number")
    return {int(key): factor for key, factor in content["scale"].items()}


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
