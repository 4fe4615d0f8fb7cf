"""The points of a study: which masks and compensations its settings come to, each of them once.

A point is named by the hash of everything that decides what it answers. With few heads, many settings are the same
mask: then they are one point, which keeps them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import MaskError
from ..mask import HeadMask, HeadScores, Schedule
from ..mask.making import prune_lowest
from ..mask.schedules import describe

NAME_DIGITS = 16


@dataclass(frozen=True)
class Setting:
    """What makes a mask: a *metric* that scores heads, and a *schedule* with the *rate* asked for, if it has one.

    Of a mask that was made before, *metric* is its file's name and *schedule* ``given``.
    """

    metric: str
    schedule: str
    rate: float | None

    @staticmethod
    def of(metric: str, schedule: Schedule) -> Setting:
        return Setting(metric, schedule.name, None if schedule.rate is None else float(schedule.rate))

    def to_json(self) -> dict[str, Any]:
        """The setting for a script to read."""
        return {"metric": self.metric, "schedule": self.schedule, "rate": self.rate}

    def __str__(self) -> str:
        return f"{self.metric} {self.schedule}" + ("" if self.rate is None else f" {self.rate:g}")


@dataclass(frozen=True)
class Point:
    """A *mask* with a *compensation*, and all the *settings* that came to it; of the baseline, mask is None.

    *decided_by* is everything that decides what the point answers, and *name* the hash of it.
    """

    mask: HeadMask | None
    compensation: str | None
    settings: tuple[Setting, ...]
    decided_by: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The first digits of a sha256."""
        content = json.dumps(self.decided_by, sort_keys=True, allow_nan=False)
        return hashlib.sha256(content.encode()).hexdigest()[:NAME_DIGITS]

    @property
    def num_pruned(self) -> int:
        """Heads that go."""
        return 0 if self.mask is None else self.mask.num_pruned

    @property
    def rate(self) -> float:
        """The realised rate."""
        return 0.0 if self.mask is None else self.mask.rate

    def to_json(self) -> dict[str, Any]:
        """The point as study.json has it."""
        return {
            "point": self.name,
            "compensation": self.compensation,
            "settings": [setting.to_json() for setting in self.settings],
            "mask": None if self.mask is None else self.mask.to_json(),
            "heads_pruned": self.num_pruned,
            "rate": self.rate,
        }


@dataclass(frozen=True)
class Grid:
    """The *points* of a study, the baseline first, and the settings that prune no head, with the reason for each."""

    points: tuple[Point, ...]
    empty: tuple[tuple[Setting, str], ...]

    @property
    def baseline(self) -> Point:
        """The model as it is."""
        return self.points[0]

    def to_json(self) -> dict[str, Any]:
        """The grid as study.json has it."""
        return {
            "points": [point.to_json() for point in self.points],
            "prune_nothing": [setting.to_json() | {"reason": reason} for setting, reason in self.empty],
        }


def make_grid(
    scores: Mapping[str, HeadScores],
    schedules: Sequence[Schedule],
    given: Mapping[str, HeadMask],
    compensations: Sequence[str],
    decided_by: Callable[[HeadMask | None, str | None], Mapping[str, Any]],
) -> Grid:
    """Every metric of *scores* with every one of *schedules*, and the masks *given*, with every one of *compensations*.

    Equal masks are one point. *given* maps what a mask is called to the mask.
    *decided_by* says what else than mask and compensation decides the answers of a point.

    Raises:
        UsageError: a schedule does not fit the scores.
    """
    masks: dict[tuple[tuple[int, ...], ...], tuple[HeadMask, list[Setting]]] = {}
    empty = []
    for schedule in schedules:
        for metric, of_metric in scores.items():
            setting = Setting.of(metric, schedule)
            try:
                mask = prune_lowest(of_metric, schedule)
            except MaskError as error:
                empty.append((setting, str(error)))
                continue
            masks.setdefault(mask.pruned, (mask, []))[1].append(setting)
    for name, mask in given.items():
        masks.setdefault(mask.pruned, (mask, []))[1].append(Setting(name, "given", None))
    ordered = sorted(masks.values(), key=lambda entry: entry[0].num_pruned)
    points = [Point(None, None, (), decided_by(None, None))]
    points += [
        Point(mask, compensation, tuple(settings), decided_by(mask, compensation))
        for mask, settings in ordered
        for compensation in compensations
    ]
    return Grid(tuple(points), tuple(empty))


def distinct(schedules: Sequence[Schedule]) -> tuple[Schedule, ...]:
    """*schedules* without those that are the same as one before."""
    return tuple({describe(schedule): schedule for schedule in schedules}.values())
