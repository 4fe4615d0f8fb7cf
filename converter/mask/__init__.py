"""Masks: which heads are pruned, read from files or made from scores by a schedule."""

from .head_mask import HeadMask
from .head_scores import HeadScores
from .making import prune_lowest
from .schedules import Schedule, parse_schedule

__all__ = ["HeadMask", "HeadScores", "Schedule", "parse_schedule", "prune_lowest"]
