"""Masks: which heads are pruned, and reading that from files."""

from converter.mask.formats import load_mask, parse_mask
from converter.mask.head_mask import HeadMask

__all__ = ["HeadMask", "load_mask", "parse_mask"]
