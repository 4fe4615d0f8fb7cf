"""Rates of pruning, exact: 0.35 is 35/100, not the float next to it, so that 0.35 * 20 heads are 7 anywhere."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from fractions import Fraction

from converter.errors import UsageError, shown

Rate = str | int | float | Decimal | Fraction

_DECIMAL = re.compile(r"[0-9]{1,3}(\.[0-9]{1,20})?|\.[0-9]{1,20}")


def exact_rate(rate: Rate) -> Fraction:
    """*rate* as the fraction that its decimal digits mean, from 0 up to, not including, 1.

    Raises:
        UsageError: not a number such as 0.3, or out of that range.
    """
    value: Fraction | None = None
    if isinstance(rate, str):
        value = Fraction(rate) if _DECIMAL.fullmatch(rate) else None
    elif isinstance(rate, float):
        value = Fraction(repr(float(rate))) if math.isfinite(rate) else None
    elif isinstance(rate, Fraction | int) or (isinstance(rate, Decimal) and rate.is_finite()):
        value = None if isinstance(rate, bool) else Fraction(rate)
    if value is None or not 0 <= value < 1:
        raise UsageError(f"rate {shown(rate)} is not a number from 0 to 1, such as 0.3 for 30 %")
    return value


def round_half_up(value: Fraction) -> int:
    """The nearest integer, the larger of two that are as near."""
    return math.floor(value + Fraction(1, 2))


def rate_text(rate: Fraction) -> str:
    """*rate* as a person writes it: 0, 0.3; as n/d where it has no short decimal form."""
    text = repr(float(rate)) if rate else "0"
    return text if Fraction(text) == rate else str(rate)
