"""Saliency: a score for every head, by one of :data:`METRICS`; higher means more worth keeping."""

from .metrics import METRICS
from .score import score_heads

__all__ = ["METRICS", "score_heads"]
