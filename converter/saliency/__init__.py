"""Saliency: a score for every head, higher means more worth keeping; :data:`METRICS` names the ways to score."""

from .metrics import METRICS
from .score import score_heads

__all__ = ["METRICS", "score_heads"]
