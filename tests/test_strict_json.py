"""JSON that means one thing only."""

from __future__ import annotations

import math

import pytest

from s4convert import strict_json


@pytest.mark.parametrize("text", ["1e400", '{"a": {"b": [0, -1e999]}}', "NaN", "[Infinity]", "-Infinity"])
def test_a_number_that_is_not_finite_is_refused_anywhere(text: str) -> None:
    with pytest.raises(strict_json.NotFiniteError):
        strict_json.parse(text)
    strict_json.parse(text, finite=False)


def test_who_can_say_where_it_stands_may_have_it() -> None:
    assert strict_json.parse("[1e400, -Infinity]", finite=False) == [math.inf, -math.inf]


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', "-0", "[", "1" * 5000, '{"' + "a" * 9999 + '": 1, "' + "a" * 9999 + '": 1}']
)
def test_what_is_refused_is_told_shortly(text: str) -> None:
    for finite in (True, False):
        with pytest.raises(ValueError) as caught:
            strict_json.parse(text, finite=finite)
        assert len(str(caught.value)) < 200


def test_what_is_finite_is_read_as_ever() -> None:
    assert strict_json.parse('{"a": [1, 1.5, 1e3, -0.0, true, null, "x"]}') == {
        "a": [1, 1.5, 1e3, 0.0, True, None, "x"]
    }
