"""Rewrite a LLaVA checkpoint on disk so that pruned attention heads stay pruned.

:func:`convert` does the main job, :func:`verify_conversion` checks two directories, :class:`Checkpoint` opens one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from converter.version import __version__

if TYPE_CHECKING:
    from converter.checkpoint import Checkpoint, Geometry
    from converter.conversion import convert
    from converter.errors import S4ConvertError
    from converter.mask import HeadMask, HeadScores, Schedule, make_mask, parse_schedule
    from converter.verification import verify_conversion
    from converter.verify.report import Report

__all__ = [
    "Checkpoint",
    "Geometry",
    "HeadMask",
    "HeadScores",
    "Report",
    "S4ConvertError",
    "Schedule",
    "__version__",
    "convert",
    "make_mask",
    "parse_schedule",
    "verify_conversion",
]

# Resolved on first use, so that the command line answers before numpy is imported.
_HOMES = {
    "Checkpoint": "converter.checkpoint",
    "Geometry": "converter.checkpoint",
    "HeadMask": "converter.mask",
    "HeadScores": "converter.mask",
    "Report": "converter.verify.report",
    "S4ConvertError": "converter.errors",
    "Schedule": "converter.mask",
    "convert": "converter.conversion",
    "make_mask": "converter.mask",
    "parse_schedule": "converter.mask",
    "verify_conversion": "converter.verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
