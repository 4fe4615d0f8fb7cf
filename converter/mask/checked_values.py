"""Checks of values from Python code or a file: finite numbers, and a provenance that JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from ..errors import MaskError, shown


def check_provenance(provenance: Any) -> None:
    """Raise MaskError unless *provenance* is None or an object that JSON can hold."""
    if provenance is None:
        return
    if not isinstance(provenance, Mapping) or not all(isinstance(name, str) for name in provenance):
        raise MaskError("provenance is not an object with names")
    try:
        json.dumps(dict(provenance), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MaskError(f"provenance cannot be written as JSON ({error})") from error


def finite_number(value: Any, where: str, what: str) -> float:
    """*value* as a float; MaskError where it is no finite number, which names the place *where* and *what* it is."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise MaskError(f"{where}: the {what} {shown(value)} is not a finite number")
