"""A score per head: how much the head is worth keeping, and the file that holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..disk import write_output
from ..errors import MaskError, shown
from .checked_values import check_provenance, finite_number

SCORES_FORMAT = "s4convert-scores/1"
# The name in the provenance: E||h||^2 of the residual stream that each layer reads.
NORMALISERS = "residual_energy"


@dataclass(frozen=True)
class HeadScores:
    """The saliency of every query head; higher means more worth keeping.

    *scores* is [num_layers][num_heads], in any unit; rows of numbers of any kind (a numpy array too) become tuples of
    floats. *provenance* says where they came from: ``source``, ``metric``, ``seed``, ``calibration_sha256`` and
    ``tool_version``, by those names, go on into the masks that are made of them. Its
    ``residual_energy`` [num_layers], where it has it, is what the schedule ``global`` divides each layer's scores by.

    Raises:
        MaskError: another shape, a score that is not finite, or normalisers that are not positive.
    """

    num_layers: int
    num_heads: int
    scores: Sequence[Sequence[float]]
    provenance: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if len(self.scores) != self.num_layers or not self.num_layers:
            raise MaskError(f"has scores of {len(self.scores)} layers, but num_layers is {self.num_layers}")
        rows = tuple(self._row(layer, row) for layer, row in enumerate(self.scores))
        object.__setattr__(self, "scores", rows)
        check_provenance(self.provenance)
        _ = self.normalisers

    def _row(self, layer: int, row: Sequence[Any]) -> tuple[float, ...]:
        if not hasattr(row, "__len__") or isinstance(row, str | Mapping):
            raise MaskError(f"layer {layer}: {shown(row)} is not a row of scores")
        if len(row) != self.num_heads or not self.num_heads:
            raise MaskError(f"layer {layer}: has {len(row)} scores for {self.num_heads} heads")
        return tuple(finite_number(score, f"layer {layer}, head {head}", "score") for head, score in enumerate(row))

    @property
    def normalisers(self) -> tuple[float, ...] | None:
        """A positive number per layer [num_layers], or None where the provenance has none."""
        stated = (self.provenance or {}).get(NORMALISERS)
        return None if stated is None else check_normalisers(stated, self.num_layers)

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the native scores file *path*, whole or not at all; *force* replaces a file that stands there.

        Raises:
            UsageError, StorageError: it cannot be written there.
        """
        write_output(Path(path), json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n", force=force)

    def to_json(self) -> dict[str, Any]:
        """The scores in the native format."""
        return {
            "format": SCORES_FORMAT,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "scores": {str(layer): list(row) for layer, row in enumerate(self.scores)},
            "provenance": dict(self.provenance or {}),
        }


def check_normalisers(values: Any, num_layers: int) -> tuple[float, ...]:
    """*values* as one positive float per layer; MaskError otherwise."""
    if isinstance(values, str | Mapping) or not hasattr(values, "__len__") or len(values) != num_layers:
        raise MaskError(f"{NORMALISERS} {shown(values)} are not a list of {num_layers} numbers, one per layer")
    numbers = tuple(finite_number(value, f"layer {layer}", "normaliser") for layer, value in enumerate(values))
    for layer, number in enumerate(numbers):
        if number <= 0:
            raise MaskError(f"layer {layer}: the normaliser {number!r} is not positive")
    return numbers
