"""A saliency score for every head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SCORES_FORMAT = "s4convert-scores/1"


@dataclass(frozen=True)
class HeadScores:
    """*scores* has one tuple of *num_heads* figures per layer; higher means more worth keeping."""

    num_layers: int
    num_heads: int
    scores: tuple[tuple[float, ...], ...]
    provenance: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The scores in the native format."""
        return {
            "format": SCORES_FORMAT,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "scores": {str(layer): list(scores) for layer, scores in enumerate(self.scores)},
            "provenance": dict(self.provenance),
        }
