"""Schedules: how many heads each layer loses.

A schedule counts *units*: heads, or kv groups where whole groups are pruned. A layer always keeps at least one.
Rates are exact: 0.35 is 35/100, not the nearest float, so that 0.35 * 20 heads are 7 on any machine.

=========  ==================================================================  =======================================
schedule   units that are pruned                                               protected layers
=========  ==================================================================  =======================================
uniform    rate * units, rounded half up, in every layer                       lose none
adaptive   floor(rate * layers * units) in the model                           lose fewer; the others make up the total
bands      as uniform, with a rate for each range of layers                    lose none
global     floor(rate * layers * units) in the model, where they cost least    lose none; the others make up the total
=========  ==================================================================  =======================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import Protocol, runtime_checkable

from ..choices import SCHEDULES
from ..errors import UsageError, shown

Rate = str | int | float | Decimal | Fraction

_DECIMAL = re.compile(r"[0-9]{1,3}(\.[0-9]{1,20})?|\.[0-9]{1,20}")


def exact_rate(rate: Rate) -> Fraction:
    """*rate* as the fraction that its decimal digits state; UsageError unless it is at least 0 and below 1."""
    value: Fraction | None = None
    if isinstance(rate, str):
        value = Fraction(rate) if _DECIMAL.fullmatch(rate) else None
    elif isinstance(rate, float):
        value = Fraction(repr(float(rate))) if math.isfinite(rate) else None
    elif isinstance(rate, Fraction | int) or (isinstance(rate, Decimal) and rate.is_finite()):
        value = None if isinstance(rate, bool) else Fraction(rate)
    if value is None or not 0 <= value < 1:
        raise UsageError(f"`rate` {shown(rate)} is not a number from 0 to below 1, such as 0.3 for 30 %")
    return value


def round_half_up(value: Fraction) -> int:
    """The nearest integer; of two, the larger."""
    return math.floor(value + Fraction(1, 2))


def rate_text(rate: Fraction) -> str:
    """*rate* as a decimal such as 0.3, or as n/d where it has no short decimal form."""
    text = repr(float(rate)) if rate else "0"
    return text if Fraction(text) == rate else str(rate)


Costs = Sequence[Sequence[Fraction]]  # [layers][units]: what losing each unit adds, in the order of losing them
Layers = tuple[int, ...]

# Defaults of adaptive: up to BASE_RATE, protected layers lose the same share as the others; of the rest of the rate,
# they lose PROTECTED_SHARE. The first PROTECTED_LAYERS of the layers are protected: 0 to 5 of 32.
BASE_RATE = Fraction(1, 16)
PROTECTED_SHARE = Fraction(3, 5)
PROTECTED_LAYERS = Fraction(6, 32)


@runtime_checkable
class Schedule(Protocol):
    """How many units each layer loses."""

    @property
    def name(self) -> str:
        """Its name in ``--schedule``."""

    @property
    def rate(self) -> Fraction | None:
        """The share of the model's units to prune; None where each layer has its own."""

    @property
    def protect(self) -> Layers | None:
        """The protected layers; None for the schedule's default."""

    def counts(self, costs: Costs) -> list[int]:
        """The number of units that each layer loses [layers]; UsageError where the schedule does not fit *costs*."""


@dataclass(frozen=True)
class Uniform:
    """The same number in every layer that is not protected."""

    rate: Fraction
    protect: Layers = ()
    name = "uniform"

    def counts(self, costs: Costs) -> list[int]:
        check_layers(self.protect, len(costs))
        return [0 if layer in self.protect else _count(self.rate, len(units)) for layer, units in enumerate(costs)]


@dataclass(frozen=True)
class Adaptive:
    """Protected layers lose fewer, and the others make up the total.

    *protect* is by default the first 3/16 of the layers. The protected layers lose *protect_rate*, by default the rate
    itself up to 1/16, and above that 1/16 + 60 % of the rest. A remainder of the division goes to the later layers.
    """

    rate: Fraction
    protect: Layers | None = None
    protect_rate: Fraction | None = None
    name = "adaptive"

    def counts(self, costs: Costs) -> list[int]:
        num_layers, num_units = len(costs), len(costs[0])
        total = _total(self.rate, costs, range(num_layers))
        early = range(max(1, round_half_up(num_layers * PROTECTED_LAYERS)))
        protected = sorted(early if self.protect is None else self.protect)
        check_layers(protected, num_layers)
        others = [layer for layer in range(num_layers) if layer not in protected]
        reduced = round_half_up(self._reduced_rate() * len(protected) * num_units)
        # Every layer keeps one unit; what the others cannot lose, the protected layers lose, so that the total holds.
        reduced = min(reduced, total, len(protected) * (num_units - 1))
        reduced = max(reduced, total - len(others) * (num_units - 1))
        counts = [0] * num_layers
        for layers, heads in ((protected, reduced), (others, total - reduced)):
            for position, layer in enumerate(layers):
                counts[layer] = heads // len(layers) + (position >= len(layers) - heads % len(layers))
        return counts

    def _reduced_rate(self) -> Fraction:
        if self.protect_rate is None:
            return min(self.rate, BASE_RATE) + PROTECTED_SHARE * max(Fraction(0), self.rate - BASE_RATE)
        if self.protect_rate > self.rate:
            raise UsageError(
                f"`protect_rate` {rate_text(self.protect_rate)} is more than `rate` {rate_text(self.rate)}; lower it"
            )
        return self.protect_rate


@dataclass(frozen=True)
class Bands:
    """A rate for each range of layers: *bands* are (first layer, last layer, rate) and hold every layer once."""

    bands: tuple[tuple[int, int, Fraction], ...]
    protect: Layers = ()
    rate = None

    @property
    def name(self) -> str:
        ranges = (
            f"{first if first == last else f'{first}-{last}'}:{rate_text(rate)}" for first, last, rate in self.bands
        )
        return f"bands:{','.join(ranges)}"

    def counts(self, costs: Costs) -> list[int]:
        check_layers(self.protect, len(costs))
        rates: dict[int, Fraction] = {}
        for first, last, rate in self.bands:
            check_layers((first, last), len(costs))
            for layer in range(first, last + 1):
                if layer in rates:
                    raise UsageError(f"layer {layer}: is in two bands; name it in one")
                rates[layer] = rate
        for layer in range(len(costs)):
            if layer not in rates:
                raise UsageError(f"layer {layer}: is in no band; name it, with a rate of 0 if it should keep its heads")
        return [0 if layer in self.protect else _count(rates[layer], len(units)) for layer, units in enumerate(costs)]


@dataclass(frozen=True)
class Global:
    """Again and again a unit of the layer whose next one costs least; of equal costs, the one in the lower layer."""

    rate: Fraction
    protect: Layers = ()
    name = "global"

    def counts(self, costs: Costs) -> list[int]:
        check_layers(self.protect, len(costs))
        open_layers = [layer for layer in range(len(costs)) if layer not in self.protect]
        total = _total(self.rate, costs, open_layers)
        counts = [0] * len(costs)
        following = [(costs[layer][0], layer) for layer in open_layers if len(costs[layer]) > 1]
        heapify(following)
        for _ in range(total):
            _, layer = heappop(following)
            counts[layer] += 1
            if counts[layer] < len(costs[layer]) - 1:
                heappush(following, (costs[layer][counts[layer]], layer))
        return counts


def least_rate(schedule: Schedule, costs: Costs) -> Fraction | None:
    """The smallest rate at which *schedule* takes a unit, of any layer; None where no rate does, or it is not known."""
    protected = () if isinstance(schedule, Adaptive) else schedule.protect or ()
    sizes = [len(units) for layer, units in enumerate(costs) if layer not in protected]
    if max(sizes, default=0) < 2:
        return None
    if isinstance(schedule, Uniform | Bands):
        return Fraction(1, 2 * max(sizes))
    return Fraction(1, sum(map(len, costs))) if isinstance(schedule, Adaptive | Global) else None


def describe(schedule: Schedule) -> str:
    """*schedule* in words, for a message."""
    return schedule.name if schedule.rate is None else f"{schedule.name} at {rate_text(schedule.rate)}"


def parse_schedule(
    text: str, rate: Rate | None = None, *, protect: str | None = None, protect_rate: Rate | None = None
) -> Schedule:
    """The schedule that *text* names: ``uniform``, ``adaptive``, ``global`` or ``bands:0-5:0,6-31:0.3``.

    *rate* is the share of heads to prune; all but bands need it. *protect* lists protected layers, as in ``0-5,31``;
    *protect_rate* is the share that they lose under ``adaptive``.

    Raises:
        UsageError: there is no such schedule, or an option is missing, malformed or does not apply to it.
    """
    layers = () if protect is None else parse_layers(protect)
    kind, separator, bands = text.partition(":")
    if kind not in ("uniform", "adaptive", "global", "bands") or (separator and kind != "bands"):
        raise UsageError(f"`schedule` {shown(text)} is none of {SCHEDULES}")
    if protect_rate is not None and kind != "adaptive":
        raise UsageError(f"`protect_rate` is for `schedule='adaptive'`; under {kind}, protected layers lose no head")
    if kind == "bands":
        if rate is not None:
            raise UsageError("bands have rates of their own; leave `rate` out")
        return Bands(tuple(_parse_band(band) for band in bands.split(",")), layers)
    if rate is None:
        raise UsageError(f"`schedule={kind!r}` needs `rate`, such as 0.3")
    exact = exact_rate(rate)
    if kind == "adaptive":
        return Adaptive(exact, layers or None, None if protect_rate is None else exact_rate(protect_rate))
    return Uniform(exact, layers) if kind == "uniform" else Global(exact, layers)


def schedule_of(schedule: str | Schedule | None, rate: Rate | None) -> Schedule | None:
    """*schedule*, parsed with *rate* where it is text; None where both are None; UsageError where they do not fit."""
    if schedule is None:
        if rate is not None:
            raise UsageError(f"`rate` needs a `schedule`: {SCHEDULES}")
        return None
    if isinstance(schedule, str):
        return parse_schedule(schedule, rate)
    if not isinstance(schedule, Schedule):
        raise UsageError(f"`schedule` is {shown(schedule)}, neither text nor a schedule")
    if rate is not None:
        raise UsageError("this `schedule` has its rate; leave `rate` out")
    return schedule


def parse_layers(text: str) -> Layers:
    """The layers in a *text* such as ``0-5,31``, sorted; UsageError where it is malformed or lists one twice."""
    layers: set[int] = set()
    for part in text.split(","):
        first, last = _parse_range(part)
        twice = layers.intersection(range(first, last + 1))
        if twice:
            raise UsageError(f"layer {min(twice)}: listed twice in {shown(text)}")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """Raise UsageError where the model does not have one of *layers*."""
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise UsageError(f"layer {layer}: out of range, there are layers 0 to {num_layers - 1}")


def _parse_range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", text.strip())
    if not match:
        raise UsageError(f"{shown(text)} is neither a layer nor a range such as 0-5")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise UsageError(f"{shown(text)}: the range ends before it begins")
    return first, last


def _parse_band(text: str) -> tuple[int, int, Fraction]:
    layers, separator, rate = text.partition(":")
    if not separator:
        raise UsageError(f"band {shown(text)} has no rate; write it as 0-5:0.2")
    return *_parse_range(layers), exact_rate(rate.strip())


def _count(rate: Fraction, num_units: int) -> int:
    return min(round_half_up(rate * num_units), num_units - 1)


def _total(rate: Fraction, costs: Costs, open_layers: Sequence[int]) -> int:
    """The units that the model loses; UsageError where *open_layers*, which alone may lose any, have too few."""
    total = math.floor(rate * sum(len(units) for units in costs))
    most = sum(len(costs[layer]) - 1 for layer in open_layers)
    if total > most:
        raise UsageError(
            f"a rate of {rate_text(rate)} asks for {total}, but only {most} can go, because every layer keeps one; "
            "lower `rate` or protect fewer layers"
        )
    return total
