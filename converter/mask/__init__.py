"""Masks: which heads are pruned, read from files or made from scores by a schedule."""

from converter.mask.head_mask import HeadMask
from converter.mask.making import make_mask
from converter.mask.schedules import Schedule, parse_schedule
from converter.mask.scores import HeadScores

__all__ = ["HeadMask", "HeadScores", "Schedule", "make_mask", "parse_schedule"]
