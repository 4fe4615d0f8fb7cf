"""Reads scores files: the native format, and the formats of other projects.

============================  ====================================  =============================================
spelling                      recognised by                         a head's score is
============================  ====================================  =============================================
native                        ``"format": "s4convert-scores/1"``    the number
``saliency_scores``           that name                             as below, or a list per layer without numbers
scores by layer and head      names such as ``"3-17"``              the mean of the list (one number is its own)
scores by layer               names are layers, a score a fraction  the number
============================  ====================================  =============================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ...checkpoint.geometry import Geometry
from ...errors import MaskError, shown
from ..checked_values import finite_number
from ..head_scores import SCORES_FORMAT, HeadScores, Ladder
from .layer_lists import SIZES, is_flag, is_integer, is_layer_number, layer_number

_LAYER_AND_HEAD = re.compile(r"(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,8})")
_LADDERS = ("order", "cost")  # of the native format, both or none
_NATIVE_FIELDS = ("format", "num_layers", "num_heads", "scores", *_LADDERS, "provenance")


def are_scores(content: Any) -> bool:
    """Whether the JSON *content* is scores, by its names and numbers; 0/1 flags written as floats are not."""
    if not isinstance(content, dict):
        return False
    if "format" in content:
        return bool(content["format"] == SCORES_FORMAT)
    if "saliency_scores" in content:
        return "pruned_heads" not in content
    return _are_by_layer_and_head(content) or _are_by_layer(content)


def read_scores(content: Mapping[str, Any], geometry: Geometry | None) -> HeadScores:
    """The scores of *content*, which :func:`are_scores`; MaskError where malformed, or not of this *geometry*."""
    if "format" in content:
        return _native(content, geometry)
    rest = {name: value for name, value in content.items() if name not in SIZES}
    value: Any = rest
    if "saliency_scores" in rest:
        value = rest.pop("saliency_scores")
        for name in rest:
            raise MaskError(f"{shown(name)} is not a field of a saliency_scores file; remove it")
    if isinstance(value, list):
        value = {str(layer): row for layer, row in enumerate(value)}
    if not isinstance(value, dict) or not value:
        raise MaskError("saliency_scores is neither an object of layers nor a list of them")
    rows = _rows_of_heads(value) if _are_by_layer_and_head(value) else _rows(value)
    return _check_sizes(HeadScores(len(rows), len(rows[0]), rows), content, geometry)


def _native(content: Mapping[str, Any], geometry: Geometry | None) -> HeadScores:
    for name in content:
        if name not in _NATIVE_FIELDS:
            raise MaskError(f"{shown(name)} is not a field of {SCORES_FORMAT}; remove it")
    for name in SIZES:
        if not is_integer(content.get(name)):
            raise MaskError(f"{name} is {shown(content.get(name))}, not a number of {name.removeprefix('num_')}")
    if not isinstance(content.get("scores"), dict) or not content["scores"]:
        raise MaskError("scores is not an object that maps layers to lists of scores")
    rows, ladders = _rows(content["scores"]), None
    if any(name in content for name in _LADDERS):
        for name in _LADDERS:
            if not isinstance(content.get(name), dict) or len(content[name]) != len(rows):
                raise MaskError(f"{name} is not an object that maps every layer to a list")
        ladders = [Ladder(*pair) for pair in zip(*(_rows(content[name]) for name in _LADDERS), strict=True)]
    scores = HeadScores(content["num_layers"], content["num_heads"], rows, content.get("provenance"), ladders)
    return _check_sizes(scores, content, geometry)


def _rows(value: Mapping[str, Any]) -> list[list[Any]]:
    """The lists of an object of layers, in the order of the layers."""
    lists = {}
    for key, row in value.items():
        layer = layer_number(key)
        if not isinstance(row, list):
            raise MaskError(f"layer {layer}: {shown(row)} is not a list of scores")
        lists[layer] = row
    _check_complete(lists, "layer")
    return [lists[layer] for layer in range(len(lists))]


def _rows_of_heads(value: Mapping[str, Any]) -> list[list[Any]]:
    """The means of the lists of an object such as ``{"3-17": [0.5, 0.7]}``."""
    found: dict[int, dict[int, float]] = {}
    for key, samples in value.items():
        layer, head = (int(number) for number in key.split("-"))
        found.setdefault(layer, {})[head] = _mean(samples, f"layer {layer}, head {head}")
    _check_complete(found, "layer")
    for layer, heads in found.items():
        _check_complete(heads, f"layer {layer}, head")
    return [[found[layer][head] for head in range(len(found[layer]))] for layer in range(len(found))]


def _mean(samples: Any, where: str) -> float:
    if not isinstance(samples, list):
        return finite_number(samples, where, "score")
    if not samples:
        raise MaskError(f"{where}: has no score")
    numbers = [finite_number(sample, where, "score") for sample in samples]
    try:
        return math.fsum(numbers) / len(numbers)  # rounded once, so the same on any machine
    except OverflowError as error:
        raise MaskError(f"{where}: the scores add up to infinity") from error


def _check_complete(numbered: Mapping[int, object], what: str) -> None:
    for number in range(len(numbered)):
        if number not in numbered:
            raise MaskError(f"{what} {number}: has no scores, but {what} {max(numbered)} has")


def _check_sizes(scores: HeadScores, content: Mapping[str, Any], geometry: Geometry | None) -> HeadScores:
    for name in SIZES:
        counted = getattr(scores, name)
        if name in content and (not is_integer(content[name]) or content[name] != counted):
            raise MaskError(f"{name} is {shown(content[name])}, but there are scores of {counted}")
        if geometry is not None and counted != getattr(geometry, name):
            raise MaskError(
                f"has scores of {counted} {name.removeprefix('num_')}, but the checkpoint has {getattr(geometry, name)}"
            )
    return scores


def _are_by_layer_and_head(content: Mapping[str, Any]) -> bool:
    names = [name for name in content if name not in SIZES]
    return bool(names) and all(_LAYER_AND_HEAD.fullmatch(name) for name in names)


def _are_by_layer(content: Mapping[str, Any]) -> bool:
    """Whether the names are layers, and a value in their lists is a float that is no flag."""
    rows = {name: value for name, value in content.items() if name not in SIZES}
    values = [value for row in rows.values() if isinstance(row, list) for value in row]
    return (
        all(is_layer_number(name) for name in rows)
        and any(isinstance(value, float) for value in values)
        and not all(is_flag(value) for value in values)
    )
