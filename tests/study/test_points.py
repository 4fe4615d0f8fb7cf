"""Settings that come to the same mask are one point, and its name is all that decides it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from s4convert.errors import UsageError
from s4convert.mask import HeadMask, HeadScores, parse_schedule
from s4convert.study.points import Grid, distinct, make_grid

RISING = HeadScores(2, 8, [list(range(8))] * 2)
FALLING = HeadScores(2, 8, [list(range(8))[::-1]] * 2)


def decided_by(mask: HeadMask | None, compensation: str | None) -> Mapping[str, Any]:
    return {"pruned": None if mask is None else [list(heads) for heads in mask.pruned], "compensation": compensation}


def grid_of(scores: Mapping[str, HeadScores], *rates: str) -> Grid:
    return make_grid(scores, [parse_schedule("uniform", rate) for rate in rates], {}, ("none", "scale"), decided_by)


def test_rates_and_metrics_that_are_the_same_mask_are_one_point_with_all_its_settings() -> None:
    grid = grid_of({"energy": RISING, "random": RISING, "magnitude": FALLING}, "0.1", "0.15")
    assert [(point.compensation, [str(one) for one in point.settings]) for point in grid.points[1:]] == [
        (mode, settings)
        for settings in (
            [f"{metric} uniform {rate}" for rate in (0.1, 0.15) for metric in ("energy", "random")],
            ["magnitude uniform 0.1", "magnitude uniform 0.15"],
        )
        for mode in ("none", "scale")
    ]
    assert len({point.name for point in grid.points}) == 5
    assert grid.baseline.mask is None and grid.baseline.rate == 0


def test_points_go_by_the_heads_that_they_lose_and_settings_that_prune_nothing_are_apart() -> None:
    grid = grid_of({"energy": RISING}, "0.3", "0.01", "0.1")
    assert [point.num_pruned for point in grid.points] == [0, 2, 2, 4, 4]
    ((setting, reason),) = grid.empty
    assert setting.rate == 0.01 and "the smallest rate that prunes one is 0.0625" in reason


def test_the_name_of_a_point_is_the_same_whatever_came_to_it() -> None:
    names = [{point.name for point in grid_of({"energy": RISING}, rate).points} for rate in ("0.1", "0.15", "0.3")]
    assert names[0] == names[1] != names[2]
    assert len(names[0] & names[2]) == 1  # the baseline


def test_schedules_that_are_the_same_are_taken_once_and_one_that_does_not_fit_is_refused() -> None:
    assert len(distinct([parse_schedule("uniform", rate) for rate in ("0.3", 0.3, "0.30", "0.1")])) == 2
    with pytest.raises(UsageError, match="layer 2: out of range"):
        make_grid({"energy": RISING}, [parse_schedule("bands:0-2:0.3")], {}, ("none",), decided_by)
