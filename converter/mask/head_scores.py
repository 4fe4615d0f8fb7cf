"""Scores: for every head, a number that says how much it is worth keeping."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import check_json_name, write_output
from ..errors import MaskError, shown
from .checked_values import check_provenance, finite_number

SCORES_FORMAT = "s4convert-scores/1"
NORMALISERS = "residual_energy"  # in the provenance: E||h||^2 of the residual stream that each layer reads


@dataclass(frozen=True)
class Ladder:
    """The *order* in which a layer loses its heads, and what its first one, two, ... cost together (*cost*)."""

    order: Sequence[int]
    cost: Sequence[float]


def rising(order: Sequence[int], cost: Sequence[float]) -> tuple[float, ...]:
    """By head, how much the *cost* grows where *order* takes it; scores that rise strictly in that order.

    Where the cost grows less than at the step before, the score is the next float above that step's score.
    """
    scores, before, lowest = [0.0] * len(order), 0.0, 0.0
    for head, total in zip(order, cost, strict=True):
        # Not max(), which would let a NaN go.
        scores[head] = lowest if total - before < lowest else total - before
        before, lowest = total, math.nextafter(scores[head], math.inf)
    return tuple(scores)


@dataclass(frozen=True)
class HeadScores:
    """The saliency of every query head; higher means more worth keeping.

    *scores* is [num_layers][num_heads], in any unit; the rows become tuples of floats. *provenance* states where they
    are from; a mask that is made from them inherits it. The schedule ``global`` divides the scores of each layer by its
    ``residual_energy`` [num_layers], if it has any. *ladders* [num_layers] are for metrics whose costs are those of a
    layer's first heads together: their order is that of the scores, and ``global`` goes by their costs.

    Raises:
        MaskError: the shape is wrong, a score or a cost is not finite, or a ladder is not in the order of its scores.
    """

    num_layers: int
    num_heads: int
    scores: Sequence[Sequence[float]]
    provenance: Mapping[str, Any] | None = None
    ladders: Sequence[Ladder] | None = None

    @staticmethod
    def of_ladders(ladders: Sequence[Ladder], provenance: Mapping[str, Any] | None = None) -> HeadScores:
        """The scores that rank heads as *ladders* do."""
        scores = [rising(ladder.order, ladder.cost) for ladder in ladders]
        return HeadScores(len(scores), len(scores[0]), scores, provenance, ladders)

    def __post_init__(self) -> None:
        if len(self.scores) != self.num_layers or not self.num_layers:
            raise MaskError(f"has scores of {len(self.scores)} layers, but num_layers is {self.num_layers}")
        rows = tuple(self._row(layer, row) for layer, row in enumerate(self.scores))
        object.__setattr__(self, "scores", rows)
        check_provenance(self.provenance)
        _ = self.normalisers
        if self.ladders is not None:
            if len(self.ladders) != self.num_layers:
                raise MaskError(f"has ladders of {len(self.ladders)} layers, but num_layers is {self.num_layers}")
            ladders = tuple(self._ladder(layer, ladder) for layer, ladder in enumerate(self.ladders))
            object.__setattr__(self, "ladders", ladders)

    def _ladder(self, layer: int, ladder: Ladder) -> Ladder:
        row = self.scores[layer]
        order = sorted(range(self.num_heads), key=lambda head: (row[head], head))
        if list(ladder.order) != order:
            raise MaskError(f"layer {layer}: the order {shown(ladder.order)} is not that of its scores, {order}")
        if isinstance(ladder.cost, str | Mapping) or len(ladder.cost) != self.num_heads:
            raise MaskError(f"layer {layer}: the cost {shown(ladder.cost)} is not a list of {self.num_heads} numbers")
        cost = (finite_number(cost, f"layer {layer}, step {step}", "cost") for step, cost in enumerate(ladder.cost))
        return Ladder(tuple(order), tuple(cost))

    def _row(self, layer: int, row: Sequence[Any]) -> tuple[float, ...]:
        if not hasattr(row, "__len__") or isinstance(row, str | Mapping):
            raise MaskError(f"layer {layer}: {shown(row)} is not a row of scores")
        if len(row) != self.num_heads or not self.num_heads:
            raise MaskError(f"layer {layer}: has {len(row)} scores for {self.num_heads} heads")
        return tuple(finite_number(score, f"layer {layer}, head {head}", "score") for head, score in enumerate(row))

    @property
    def normalisers(self) -> tuple[float, ...] | None:
        """A positive number per layer, or None where the provenance has none; MaskError where they are malformed."""
        stated, layers = (self.provenance or {}).get(NORMALISERS), self.num_layers
        if stated is None:
            return None
        if isinstance(stated, str | Mapping) or not hasattr(stated, "__len__") or len(stated) != layers:
            raise MaskError(f"{NORMALISERS} {shown(stated)} are not a list of {layers} numbers, one per layer")
        numbers = tuple(finite_number(value, f"layer {layer}", "normaliser") for layer, value in enumerate(stated))
        for layer, number in enumerate(numbers):
            if number <= 0:
                raise MaskError(f"layer {layer}: the normaliser {shown(number)} is not positive")
        return numbers

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the native scores file *path*, whole or not at all; *force* replaces an existing file.

        Raises:
            UsageError, StorageError: it cannot be written there, or the name does not end in ``.json``.
        """
        check_json_name(Path(path))
        write_output(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", force=force)

    def to_json(self) -> dict[str, Any]:
        """The scores in the native format."""
        return {
            "format": SCORES_FORMAT,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "scores": {str(layer): list(row) for layer, row in enumerate(self.scores)},
            **self._ladders_to_json(),
            "provenance": dict(self.provenance or {}),
        }

    def _ladders_to_json(self) -> dict[str, Any]:
        if self.ladders is None:
            return {}
        return {
            "order": {str(layer): list(ladder.order) for layer, ladder in enumerate(self.ladders)},
            "cost": {str(layer): list(ladder.cost) for layer, ladder in enumerate(self.ladders)},
        }
