"""Masks made in Python are checked as strictly as masks from files."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from s4convert.errors import MaskError
from s4convert.mask import HeadMask

PRUNED = ((1,), ())


@pytest.mark.parametrize("factor", [np.float64(1.5), np.float32(1.5), np.float16(1.5), Fraction(3, 2), 1.5])
def test_a_factor_of_another_kind_of_number_becomes_a_float(factor: Any) -> None:
    mask = HeadMask(4, PRUNED, scale={np.int64(0): factor})  # type: ignore[dict-item]
    assert mask.scale == {0: 1.5}
    assert json.loads(json.dumps(mask.to_json()))["scale"] == {"0": 1.5}


@pytest.mark.parametrize("factor", [np.int8(2), 2])
def test_a_whole_factor_stays_whole(factor: Any) -> None:
    assert json.dumps(HeadMask(4, PRUNED, scale={0: factor}).to_json()["scale"]) == '{"0": 2}'


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({0: "1.5"}, "scale, layer 0: '1.5' is not a number"),
        ({0: True}, "scale, layer 0: True is not a number"),
        ({0: np.bool_(True)}, "is not a number"),
        ({0: None}, "scale, layer 0: None is not a number"),
        ({0: [1.5]}, "scale, layer 0: [1.5] is not a number"),
        ({0: Decimal("1.5")}, "is not a number"),
        ({0: 1.5j}, "scale, layer 0: 1.5j is not a number"),
        ({0: np.array([1.5])}, "is not a number"),
        ({0: Fraction(10**400)}, "is not a number"),
        ({0: 10**5000}, "is not a factor"),
        ({0: np.float32(np.nan)}, "scale, layer 0: nan is not a factor"),
        ({0: math.inf}, "scale, layer 0: inf is not a factor"),
        ({"0": 1.5}, "scale: layer '0' is not a layer that loses heads"),
        ({False: 1.5}, "scale: layer False is not a layer that loses heads"),
        ({0.5: 1.5}, "scale: layer 0.5 is not a layer that loses heads"),
        ([1.5], "scale is not an object"),
        ("1.5", "scale is not an object"),
        (1.5, "scale is not an object"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_a_factor_that_is_no_number_is_refused(scale: Any, message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)) as caught:
        HeadMask(4, PRUNED, scale=scale)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "provenance", ["me", ["me"], {"x": {1, 2}}, {"x": np.float32(1)}, {"x": math.nan}, {1: 2}, {"x": object()}]
)
def test_a_provenance_that_json_cannot_hold_is_refused(provenance: Any) -> None:
    with pytest.raises(MaskError, match="provenance"):
        HeadMask(4, PRUNED, provenance=provenance)


def test_a_long_value_is_cut_in_a_message() -> None:
    with pytest.raises(MaskError) as caught:
        HeadMask(4, (tuple(range(100_000)),))
    assert len(str(caught.value)) < 200


def test_the_summary_joins_layers_that_lose_as_many() -> None:
    assert HeadMask(4, ((1,), (2,), (), (0, 1))).to_text().split() == (
        [
            "layers",
            "heads",
            "pruned",
            "0-1",
            "1",
            "2",
            "0",
            "3",
            "2",
            "total",
            "4",
            "of",
            "16",
            "heads,",
            "a",
            "rate",
            "of",
            "0.25",
        ]
    )
