"""Rewrite a LLaVA checkpoint on disk so that pruned attention heads stay pruned.

:func:`convert` does the main job, :func:`verify_conversion` checks two directories, :class:`Checkpoint` opens one.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Geometry
    from .errors import S4ConvertError
    from .jobs.convert import convert
    from .jobs.verify import verify_conversion
    from .mask import HeadMask, HeadScores, Schedule, make_mask, parse_schedule
    from .verify.report import Report

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
    "Checkpoint": ".checkpoint",
    "Geometry": ".checkpoint",
    "HeadMask": ".mask",
    "HeadScores": ".mask",
    "Report": ".verify.report",
    "S4ConvertError": ".errors",
    "Schedule": ".mask",
    "convert": ".jobs.convert",
    "make_mask": ".mask",
    "parse_schedule": ".mask",
    "verify_conversion": ".jobs.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
