"""Intervals, paired differences and the worth of open answers are those of the literature."""

from __future__ import annotations

import math

import pytest

from s4convert.study.figures import difference, exact_match, normalised, share, vqa_accuracy


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    """Source: Newcombe, Stat. Med. 17 (1998), table I, method 3."""
    found = share([1.0] * right + [0.0] * (count - right))
    assert found is not None
    assert (found.value, found.count) == (right / count, count)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_where_all_are_right_the_interval_ends_at_one() -> None:
    found = share([1.0] * 4)
    assert found is not None
    assert (found.high, round(found.low, 4)) == (1.0, 0.5101)
    assert str(found) == "100.0% (51.0% to 100.0%)"
    assert found.to_json() == {"percent": 100.0, "low": 51.01, "high": 100.0, "count": 4}
    assert share([]) is None


def scores(both: int, gained: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    pairs = [(1.0, 1.0)] * both + [(0.0, 1.0)] * gained + [(1.0, 0.0)] * lost + [(0.0, 0.0)] * neither
    return [before for before, _ in pairs], [after for _, after in pairs]


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [(0, 0, 1), (5, 5, 1), (0, 1, 1), (0, 5, 2 / 32), (8, 1, 20 / 512), (4, 14, 8096 / 262144), (0, 1000, 2.0**-999)],
)
def test_p_is_that_of_the_exact_mcnemar_test(gained: int, lost: int, p_value: float) -> None:
    """Twice the binomial tail of the discordant pairs, 1 at the most, whatever the concordant ones are."""
    found = [difference(*scores(both, gained, lost, 3)) for both in (1, 90)]
    assert [change.p_value for change in found] == [p_value, p_value]
    assert (found[0].gained, found[0].lost) == (gained, lost)


def test_the_interval_of_a_difference_is_bonetts_and_prices() -> None:
    """Airway hyper-responsiveness before and after a transplantation: Fagerland et al., Stat. Med. 33 (2014)."""
    found = difference(*scores(1, 1, 7, 12))
    assert found.value == pytest.approx(-6 / 21)
    assert (found.low, found.high) == (pytest.approx(-0.508, abs=1e-3), pytest.approx(-0.013, abs=1e-3))


def test_a_loss_is_one_where_the_interval_does_not_hold_zero() -> None:
    few, many = difference(*scores(50, 4, 6, 40)), difference(*scores(500, 10, 60, 430))
    better, same = difference(*scores(50, 40, 0, 10)), difference(*scores(4, 0, 0, 0))
    assert (few.is_kept, many.is_kept, better.is_kept, same.is_kept) == (True, False, True, True)
    assert str(few) == "kept: -2.0 points (-8.6 to +4.7)"
    assert str(many) == "lost 5.0 ± 1.6 points (p 8e-10)"
    assert same.high > 0 > same.low
    assert many.to_json()["kept"] is False
    assert many.to_json()["points"] == -5.0


def test_shares_of_answers_have_differences_too() -> None:
    found = difference([0.3, 1.0, 0.6], [0.6, 0.9, 0.6])
    assert found.value == pytest.approx(0.2 / 3)
    assert (found.gained, found.lost) == (1, 1)


def test_every_answer_of_one_needs_one_of_the_other() -> None:
    with pytest.raises(ValueError, match="shorter"):
        difference([1.0, 0.0], [1.0])


@pytest.mark.parametrize(("agreeing", "worth"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_the_vqa_metric_of_ten_people(agreeing: int, worth: float) -> None:
    people = ["two"] * agreeing + [f"no {number}" for number in range(10 - agreeing)]
    assert vqa_accuracy("2", people) == pytest.approx(worth)


def test_one_reference_is_an_exact_match() -> None:
    assert vqa_accuracy("The box.", ["box"]) == exact_match("The box.", ["box"]) == 1.0
    assert vqa_accuracy("boxes", ["box"]) == exact_match("boxes", ["box", "cup"]) == 0.0


@pytest.mark.parametrize(
    ("answer", "normal"),
    [("Two boxes.", "2 boxes"), ("1,000.5", "1000.5"), ("an  e-mail", "e mail"), ("50%", "50%"), ("Don't", "dont")],
)
def test_the_normal_form(answer: str, normal: str) -> None:
    assert normalised(answer) == normal
    assert math.isclose(exact_match(answer, [normal]), 1.0)


def test_an_interval_holds_its_share_however_it_rounds() -> None:
    for count in range(1, 400):
        for right in {0, 1, count // 2, count - 1, count}:
            found = share([1.0] * right + [0.0] * (count - right))
            assert found is not None
            assert 0 <= found.low <= found.value <= found.high <= 1
