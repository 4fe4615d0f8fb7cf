"""A strict JSON parser: it refuses a name that an object has twice, -0, NaN and 1e400."""

from __future__ import annotations

import json
import math
from typing import Any

from .errors import shown


class NotFiniteError(ValueError):
    """A number that is NaN or infinite, or too large for a float."""


def parse(text: bytes | str, *, finite: bool = True) -> Any:
    """The value of the JSON *text*; with *finite* off, NaN and infinities pass.

    Raises:
        NotFiniteError: a number is not finite.
        ValueError: not JSON, nested too deeply, an object has a name twice, or an integer is -0.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_fraction if finite else float,
            parse_constant=_constant if finite else float,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _constant(name: str) -> Any:
    raise NotFiniteError(f"{name} is not JSON")


def _fraction(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise NotFiniteError(f"{shown(digits)} is too large for a float")
    return value


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is not an integer")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{shown(name)} stands twice")
        fields[name] = value
    return fields
