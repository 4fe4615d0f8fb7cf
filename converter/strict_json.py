"""JSON that means one thing only: a name that stands twice in an object is an error, and so are -0 and NaN."""

from __future__ import annotations

import json
from typing import Any


def parse(text: bytes | str) -> Any:
    """The value of the JSON *text*.

    Raises:
        ValueError: not JSON (NaN and Infinity are not), nested too deeply, a name is repeated in an object, or an
            integer is -0 (which other parsers read as a float).
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is not an integer")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{name!r} stands twice")
        fields[name] = value
    return fields
