"""Shares with intervals, paired differences, and what open answers are worth."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

_Z = 1.959963984540054  # the normal quantile of a 95 % interval


@dataclass(frozen=True)
class Share:
    """The mean *value* of *count* scores from 0 to 1, with its 95 % interval from *low* to *high*.

    The interval is Wilson's score interval (J. Am. Stat. Assoc. 22, 1927). Of scores between 0 and 1 their sum stands
    for the number of successes, which makes it too wide rather than too narrow.
    """

    value: float
    low: float
    high: float
    count: int

    def to_json(self) -> dict[str, float]:
        """The figures in per cent."""
        figures = {"percent": self.value, "low": self.low, "high": self.high}
        return {name: round(100 * figure, 2) for name, figure in figures.items()} | {"count": self.count}

    def __str__(self) -> str:
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%})"


def share(scores: Collection[float]) -> Share | None:
    """The share of *scores*, or None where there are none."""
    if not scores:
        return None
    count, total = len(scores), math.fsum(scores)
    value = total / count
    centre = (value + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * math.sqrt(value * (1 - value) / count + _Z**2 / (4 * count**2))
    # At 0 and 1 the interval ends there, where rounding would leave it short.
    return Share(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)), count)


@dataclass(frozen=True)
class Difference:
    """What changed between two runs over the same questions: *value* is the mean of (second - first).

    *low* to *high* is its 95 % interval, *p_value* that of the exact McNemar test, for the questions that only one of
    the two answered right (*gained* and *lost*).
    """

    value: float
    low: float
    high: float
    gained: int
    lost: int
    p_value: float

    @property
    def is_kept(self) -> bool:
        """Whether no loss can be told from chance: the interval holds 0."""
        return self.low <= 0 <= self.high or self.value > 0

    def to_json(self) -> dict[str, Any]:
        """The figures, differences in points."""
        points = {"points": self.value, "low": self.low, "high": self.high}
        counts = {"gained": self.gained, "lost": self.lost, "p_value": float(f"{self.p_value:.4g}")}
        return {name: round(100 * figure, 2) for name, figure in points.items()} | counts | {"kept": self.is_kept}

    def __str__(self) -> str:
        points, low, high = (100 * figure for figure in (self.value, self.low, self.high))
        if self.is_kept:
            return f"kept: {points:+.1f} points ({low:+.1f} to {high:+.1f})"
        return f"lost {-points:.1f} ± {(high - low) / 2:.1f} points (p {self.p_value:.2g})"


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The paired difference of scores, question by question.

    The interval is that of a mean of paired differences, with one question added on each side that only the one and
    only the other answers right, so that it has a width where all answers agree (Bonett and Price, J. Educ. Behav.
    Stat. 37, 2012).
    """
    changes = [after - before for before, after in zip(first, second, strict=True)]
    gained, lost = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    value = math.fsum(changes) / len(changes)
    adjusted = [*changes, 1.0, -1.0]
    mean = math.fsum(adjusted) / len(adjusted)
    variance = math.fsum((change - mean) ** 2 for change in adjusted) / len(adjusted)
    half = _Z * math.sqrt(variance / len(adjusted))
    return Difference(value, mean - half, mean + half, gained, lost, _sign_test(gained, lost))


def _sign_test(gained: int, lost: int) -> float:
    """The p value of the exact McNemar test: how likely a fair coin is to fall as unevenly, on either side."""
    flips = gained + lost
    return min(1.0, math.ldexp(2 * sum(math.comb(flips, few) for few in range(min(gained, lost) + 1)), -flips))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where *answer* is one of *references*, in the normal form of the VQA metric, else 0."""
    return float(normalised(answer) in {normalised(reference) for reference in references})


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """The VQA metric: what a third of the others who gave *answer* make, over every choice of all but one person.

    Source: Antol et al., VQA (ICCV 2015); with one reference it is :func:`exact_match`.
    """
    given, people = normalised(answer), [normalised(reference) for reference in references]
    if len(people) == 1:
        return float(given == people[0])
    shares = [
        min(1.0, sum(other == given for number, other in enumerate(people) if number != left_out) / 3)
        for left_out in range(len(people))
    ]
    return math.fsum(shares) / len(shares)


_ARTICLES = {"a", "an", "the"}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)} | {"none": "0"}
_MARKS = ';/[]"{}()=+\\_-><@`!'


def normalised(answer: str) -> str:
    """*answer* in lower case, without articles, punctuation and apostrophes, numbers as digits.

    It is what LLaVA's ``m4c_evaluator`` compares; its list of contractions (dont, don't) is apostrophes left out here.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = " ".join(text.split())
    for mark in _MARKS:
        text = text.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    text = re.sub(r"[.](?!\d)", "", text).replace("'", "")
    words = (_NUMBERS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in _ARTICLES)
