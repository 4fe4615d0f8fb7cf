"""How far hidden states of one model are from those of another, over the tokens of a modality."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING

from ..compensation.figures import rounded

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Distance:
    """Of states [tokens, hidden_size] to others: sums in float64, so that those of samples and modalities add up.

    *abs_delta* is the sum of |found - wanted| over all *numbers*, *max_abs_delta* the largest of these; *squares* are
    the sums of the squares of that difference and of the other states. *cosines* is the sum over *tokens*.
    """

    tokens: int = 0
    numbers: int = 0
    abs_delta: float = 0.0
    max_abs_delta: float = 0.0
    squares: tuple[float, float] = (0.0, 0.0)
    cosines: float = 0.0

    @staticmethod
    def between(found: torch.Tensor, wanted: torch.Tensor) -> Distance:
        """The distance of *found* from *wanted*, both [tokens, hidden_size]."""
        import torch

        if not len(found):
            return Distance()
        a, b = found.double(), wanted.double()
        change = (a - b).abs()
        return Distance(
            len(a),
            a.numel(),
            float(change.sum()),
            float(change.max()),
            (float(change.square().sum()), float(b.square().sum())),
            float(torch.nn.functional.cosine_similarity(a, b, dim=-1).sum()),
        )

    @staticmethod
    def total(parts: Iterable[Distance]) -> Distance:
        """Over the tokens of all *parts*."""
        return reduce(Distance._with, parts, Distance())

    def _with(self, other: Distance) -> Distance:
        return Distance(
            self.tokens + other.tokens,
            self.numbers + other.numbers,
            self.abs_delta + other.abs_delta,
            max(self.max_abs_delta, other.max_abs_delta),
            (self.squares[0] + other.squares[0], self.squares[1] + other.squares[1]),
            self.cosines + other.cosines,
        )

    def to_json(self) -> dict[str, float]:
        """The figures, rounded to four significant digits."""
        names = ("mean_abs_delta", "max_abs_delta", "relative_delta", "cosine")
        return {name: rounded(getattr(self, name)) for name in names}

    @property
    def mean_abs_delta(self) -> float:
        """The mean of |found - wanted|."""
        return self.abs_delta / self.numbers

    @property
    def relative_delta(self) -> float:
        """The norm of the difference over the norm of the other states."""
        change, norm = map(math.sqrt, self.squares)
        return change / norm if norm else math.nan

    @property
    def cosine(self) -> float:
        """The mean over tokens of the cosine between the two states of a token."""
        return self.cosines / self.tokens
