"""How many heads each layer loses: the counts that are known, and what holds for any rate and shape."""

from __future__ import annotations

import math
import re
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from s4convert.errors import MaskError, UsageError
from s4convert.mask import HeadMask, HeadScores, parse_schedule, prune_lowest
from s4convert.mask.schedules import exact_rate, parse_layers, rate_text, round_half_up

EARLY = range(6)


def scores_of(num_layers: int, num_heads: int, seed: int = 0) -> HeadScores:
    return HeadScores(num_layers, num_heads, np.random.default_rng(seed).normal(size=(num_layers, num_heads)))


def counts(mask: HeadMask) -> list[int]:
    return [len(heads) for heads in mask.pruned]


def counts_of(text: str, rate: str | None = None, **options: Any) -> list[int]:
    """The counts for 32 layers of 32 heads."""
    return counts(prune_lowest(scores_of(32, 32), parse_schedule(text, rate, **options)))


# --- the counts that are known ------------------------------------------------------------------------------


def test_uniform_thirty_percent_is_320_heads() -> None:
    assert counts_of("uniform", "0.3") == [10] * 32


def test_bands_are_206_heads() -> None:
    found = counts_of("bands:0-5:0,6-21:0.2,22-31:0.35")
    assert found == [0] * 6 + [6] * 16 + [11] * 10
    assert sum(found) == 206


@pytest.mark.parametrize(("rate", "total", "early"), [("0.3", 307, 39), ("0.15", 153, 22)])
def test_adaptive_keeps_the_total_and_spares_the_early_layers(rate: str, total: int, early: int) -> None:
    found = counts_of("adaptive", rate)
    assert (sum(found), sum(found[layer] for layer in EARLY)) == (total, early)
    assert found == sorted(found)


def test_adaptive_takes_other_layers_and_another_rate() -> None:
    found = counts_of("adaptive", "0.3", protect="0-3,31", protect_rate="0.1")
    assert sum(found) == 307
    assert sum(found[:4]) + found[31] == 16


def test_global_thirty_percent_is_307_heads() -> None:
    assert sum(counts_of("global", "0.3")) == 307
    found = counts_of("global", "0.3", protect="0-5,31")
    assert sum(found) == 307
    assert found[:6] == [0] * 6
    assert found[31] == 0


def test_protected_layers_lose_nothing_under_uniform_and_bands() -> None:
    assert counts_of("uniform", "0.3", protect="0-5,31") == [0] * 6 + [10] * 25 + [0]
    assert counts_of("bands:0-31:0.2", protect="31") == [6] * 31 + [0]


@pytest.mark.parametrize(
    ("rate", "heads", "count"), [("0.35", 20, 7), ("0.05", 10, 1), ("0.15", 10, 2), ("0.25", 2, 1)]
)
def test_halves_are_rounded_up_as_on_paper(rate: str, heads: int, count: int) -> None:
    assert counts(prune_lowest(scores_of(1, heads), parse_schedule("uniform", rate))) == [count]
    assert counts(prune_lowest(scores_of(1, heads), parse_schedule("uniform", float(rate)))) == [count]


def test_a_layer_keeps_one_head_at_any_rate() -> None:
    assert counts(prune_lowest(scores_of(3, 4), parse_schedule("uniform", "0.99"))) == [3, 3, 3]


# --- what holds for any rate and shape ----------------------------------------------------------------------

RATES = st.integers(0, 999).map(lambda thousandths: f"{thousandths / 1000:.3f}")
SHAPES = st.tuples(st.integers(1, 12), st.integers(2, 12))
# Scores from -2 to 2 for the largest shape; as bytes, because a list takes hypothesis a hundred times as long.
SCORES = st.binary(min_size=144, max_size=144).map(lambda drawn: [byte % 5 - 2 for byte in drawn])


def made(scores: HeadScores, text: str, rate: str | None = None, **options: Any) -> HeadMask:
    """The mask, unless the request is one that must be refused: nothing to prune, or more than can go."""
    grouping = {name: options.pop(name) for name in ("granularity", "num_kv_heads") if name in options}
    try:
        return prune_lowest(scores, parse_schedule(text, rate, **options), **grouping)
    except MaskError as error:
        assert re.search("prunes no (head|kv group)", str(error))
    except UsageError as error:
        assert re.search("asks for .* can go", str(error))
    assume(False)
    raise AssertionError


@given(RATES, SHAPES, st.integers(0, 3))
def test_uniform_counts_are_the_rate_rounded_half_up(rate: str, shape: tuple[int, int], seed: int) -> None:
    mask = made(scores_of(*shape, seed), "uniform", rate)
    exact = int((Decimal(rate) * shape[1]).quantize(Decimal(1), ROUND_HALF_UP))
    assert counts(mask) == [min(exact, shape[1] - 1)] * shape[0]


@given(RATES, SHAPES, st.sampled_from(["adaptive", "global"]), st.data())
def test_budgets_are_met_exactly_and_a_layer_keeps_a_head(
    rate: str, shape: tuple[int, int], text: str, data: st.DataObject
) -> None:
    layers = data.draw(st.sets(st.integers(0, shape[0] - 1)), label="protect")
    mask = made(scores_of(*shape), text, rate, protect=",".join(map(str, layers)) or None)
    assert mask.num_pruned == int((Decimal(rate) * shape[0] * shape[1]).quantize(Decimal(1), ROUND_FLOOR))
    assert max(counts(mask)) < shape[1]
    if text == "global":
        assert all(not mask.pruned[layer] for layer in layers)


@given(RATES, SHAPES)
def test_adaptive_never_takes_more_from_an_early_layer_than_from_a_later_one(rate: str, shape: tuple[int, int]) -> None:
    found = counts(made(scores_of(*shape), "adaptive", rate))
    early = max(1, round_half_up(Fraction(shape[0] * 6, 32)))
    # One head more where a count does not divide evenly.
    assert all(max(found[:early]) <= count + 1 for count in found[early:])


@given(SHAPES, st.sampled_from(["uniform", "adaptive", "global"]), SCORES)
def test_the_lowest_go_and_of_equal_scores_the_lower_number(
    shape: tuple[int, int], text: str, values: list[int]
) -> None:
    num_layers, num_heads = shape
    rows = [values[layer * num_heads : (layer + 1) * num_heads] for layer in range(num_layers)]
    mask = made(HeadScores(num_layers, num_heads, rows), text, "0.4")
    for layer, row in enumerate(rows):
        order = sorted(range(num_heads), key=lambda head: (row[head], head))
        assert sorted(order[: len(mask.pruned[layer])]) == list(mask.pruned[layer])


@given(SHAPES, SCORES, RATES)
def test_global_takes_the_cheapest_heads_of_the_model(shape: tuple[int, int], values: list[int], rate: str) -> None:
    num_layers, num_heads = shape
    rows = [values[layer * num_heads : (layer + 1) * num_heads] for layer in range(num_layers)]
    mask = made(HeadScores(num_layers, num_heads, rows), "global", rate)
    pruned = {(rows[layer][head], layer, head) for layer, heads in enumerate(mask.pruned) for head in heads}
    full = {layer for layer, heads in enumerate(mask.pruned) if len(heads) == num_heads - 1}
    kept = {(rows[la][h], la, h) for la in range(num_layers) if la not in full for h in mask.kept(la)}
    if kept:
        assert max(pruned) < min(kept)


@given(
    RATES, st.integers(1, 6), st.integers(2, 6), st.integers(1, 4), st.sampled_from(["uniform", "adaptive", "global"])
)
def test_groups_go_whole(rate: str, num_layers: int, num_kv_heads: int, size: int, text: str) -> None:
    scores = scores_of(num_layers, num_kv_heads * size)
    mask = made(scores, text, rate, granularity="group", num_kv_heads=num_kv_heads)
    for layer, heads in enumerate(mask.pruned):
        groups = {head // size for head in heads}
        assert len(heads) == len(groups) * size
        sums = [math.fsum(scores.scores[layer][group * size : (group + 1) * size]) for group in range(num_kv_heads)]
        assert all(sums[gone] <= sums[kept] for gone in groups for kept in set(range(num_kv_heads)) - groups)
    if text == "uniform":
        exact = int((Decimal(rate) * num_kv_heads).quantize(Decimal(1), ROUND_HALF_UP))
        assert counts(mask) == [min(exact, num_kv_heads - 1) * size] * num_layers


def test_global_divides_by_the_normalisers_of_the_scores() -> None:
    rows = [[1.0, 8.0], [3.0, 9.0]]
    schedule = parse_schedule("global", "0.25")
    assert prune_lowest(HeadScores(2, 2, rows), schedule).pruned == ((0,), ())
    assert prune_lowest(HeadScores(2, 2, rows, {"residual_energy": [1, 10]}), schedule).pruned == ((), (0,))
    assert prune_lowest(HeadScores(2, 2, rows, {"residual_energy": [1, 3]}), schedule).pruned == ((0,), ())  # a tie
    with pytest.raises(MaskError, match=r"layer 1: the normaliser -1\.0 is not positive"):
        HeadScores(2, 2, rows, {"residual_energy": [1, -1]})


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate", ["", "1", "1.0", "-0.1", "30%", "0.3.1", "1e-1", "1/3", "nan", "inf", " 0.3", "\u0660.\u0663"]
)
def test_a_rate_is_a_decimal_number_below_one(rate: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"`rate` {rate!r} is not a number from 0 to below 1")):
        exact_rate(rate)


@pytest.mark.parametrize("rate", [True, 1, -1, 1.5, math.nan, math.inf, Decimal("NaN"), Fraction(3, 2), None])
def test_a_rate_from_python_is_checked_too(rate: Any) -> None:
    with pytest.raises(UsageError, match="is not a number from 0 to below 1"):
        exact_rate(rate)


@pytest.mark.parametrize("rate", ["0.3", ".3", "0.30", 0.3, np.float64(0.3), Decimal("0.3"), Fraction(3, 10)])
def test_three_tenths_are_three_tenths(rate: Any) -> None:
    assert exact_rate(rate) == Fraction(3, 10)
    assert rate_text(exact_rate(rate)) == "0.3"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("uniform", {}, "`schedule='uniform'` needs `rate`"),
        ("global", {}, "`schedule='global'` needs `rate`"),
        ("bands:0-31:0.2", {"rate": "0.2"}, "bands have rates of their own; leave `rate` out"),
        ("nonsense", {"rate": "0.2"}, "`schedule` 'nonsense' is none of uniform, adaptive, global or bands"),
        ("uniform:0-5", {"rate": "0.2"}, "`schedule` 'uniform:0-5' is none of"),
        ("bands", {}, "band '' has no rate"),
        ("bands:", {}, "band '' has no rate"),
        ("bands:0-31", {}, "band '0-31' has no rate; write it as 0-5:0.2"),
        ("bands:0-31:2", {}, "`rate` '2' is not a number from 0 to below 1"),
        ("bands:0-5:0,5-31:0.2", {}, "layer 5: is in two bands"),
        ("bands:0-5:0,7-31:0.2", {}, "layer 6: is in no band"),
        ("bands:0-32:0.2", {}, "layer 32: out of range, there are layers 0 to 31"),
        ("bands:9-3:0.2", {}, "'9-3': the range ends before it begins"),
        ("uniform", {"rate": "0.3", "protect": "0-x"}, "'0-x' is neither a layer nor a range"),
        ("uniform", {"rate": "0.3", "protect": ""}, "'' is neither a layer nor a range"),
        ("uniform", {"rate": "0.3", "protect": "0-5,3"}, "layer 3: listed twice in '0-5,3'"),
        ("uniform", {"rate": "0.3", "protect": "32"}, "layer 32: out of range"),
        ("adaptive", {"rate": "0.3", "protect": "32"}, "layer 32: out of range"),
        ("global", {"rate": "0.3", "protect": "32"}, "layer 32: out of range"),
        ("uniform", {"rate": "0.3", "protect_rate": "0.1"}, "`protect_rate` is for `schedule='adaptive'`"),
        ("adaptive", {"rate": "0.3", "protect_rate": "0.4"}, "`protect_rate` 0.4 is more than `rate` 0.3"),
        ("adaptive", {"rate": "0.98"}, "asks for 1003, but only 992 can go"),
        ("global", {"rate": "0.5", "protect": "0-19"}, "asks for 512, but only 372 can go"),
    ],
)
def test_a_schedule_that_cannot_be_followed_is_refused(text: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        counts_of(text, options.pop("rate", None), **options)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("uniform", {"rate": "0.01"}, "uniform at 0.01 prunes no head, with 32 in each of 32 layers; "),
        ("adaptive", {"rate": "0.0005"}, "adaptive at 0.0005 prunes no head, with 32 in each of 32 layers; "),
        ("global", {"rate": "0", "protect": "0-30"}, "global at 0 prunes no head, with 32 in each of 32 layers; "),
        ("bands:0-31:0.015", {}, "bands:0-31:0.015 prunes no head, with 32 in each of 32 layers; "),
    ],
)
def test_a_rate_that_prunes_nothing_is_told_the_smallest_that_prunes(
    text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MaskError) as caught:
        counts_of(text, options.get("rate"), protect=options.get("protect"))
    told = re.fullmatch(re.escape(message) + r"the smallest rate that prunes one is (0\.[0-9]+)", str(caught.value))
    assert told, caught.value
    smallest, less = told[1], f"{float(told[1]) - 1e-6:.6f}"
    if text.startswith("bands"):
        assert sum(counts_of(f"bands:0-31:{smallest}")) > 0
        with pytest.raises(MaskError):
            counts_of(f"bands:0-31:{less}")
    else:
        assert sum(counts_of(text, smallest, protect=options.get("protect"))) > 0
        with pytest.raises(MaskError):
            counts_of(text, less, protect=options.get("protect"))


def test_where_no_rate_prunes_a_head_none_is_named() -> None:
    with pytest.raises(MaskError, match=r"^uniform at 0\.5 prunes no head, .*; protect fewer layers$"):
        counts_of("uniform", "0.5", protect="0-31")


def test_a_rate_that_prunes_no_group_counts_groups() -> None:
    with pytest.raises(MaskError, match=r"prunes no kv group, with 8 in each of 32 layers; .* is 0\.0625$"):
        prune_lowest(scores_of(32, 32), parse_schedule("uniform", "0.06"), granularity="group", num_kv_heads=8)


@pytest.mark.parametrize(
    ("grouping", "message"),
    [
        ({"granularity": "group"}, "`granularity='group'` needs `num_kv_heads`"),
        ({"granularity": "group", "num_kv_heads": 5}, "32 heads cannot share 5 kv heads evenly"),
        ({"granularity": "group", "num_kv_heads": 0}, "32 heads cannot share 0 kv heads evenly"),
        ({"granularity": "layer"}, "`granularity` 'layer' is none of head, group"),
    ],
)
def test_groups_that_do_not_fit_are_refused(grouping: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prune_lowest(scores_of(2, 32), parse_schedule("uniform", "0.3"), **grouping)


def test_layers_are_listed_as_people_list_them() -> None:
    assert parse_layers("31,0-5, 7") == (0, 1, 2, 3, 4, 5, 7, 31)
