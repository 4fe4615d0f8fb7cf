"""Rewrite a LLaVA checkpoint on disk so that pruned attention heads stay pruned.

The jobs are what the command line does: :func:`convert` (and :func:`plan_conversion`, its dry run),
:func:`verify_conversion` (and :func:`verify_files`), :func:`reproduce`, :func:`evaluate`, :func:`compare`,
:func:`sweep` (and :func:`summarise_results`), :func:`inspect`, :func:`write_report`, :func:`make_mask`, :func:`push`
(and :func:`plan_push`), :func:`convert_and_push`, :func:`demonstrate`. Each takes its options as keywords or as a
frozen object.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import Checkpoint as Checkpoint
    from .errors import CalibrationError as CalibrationError
    from .errors import CheckpointError as CheckpointError
    from .errors import CompensationError as CompensationError
    from .errors import EvaluatorError as EvaluatorError
    from .errors import HubError as HubError
    from .errors import MaskError as MaskError
    from .errors import S4ConvertError as S4ConvertError
    from .errors import StorageError as StorageError
    from .errors import UsageError as UsageError
    from .errors import VerificationError as VerificationError
    from .hub.push import plan_push as plan_push
    from .hub.push import push as push
    from .jobs.compare import compare as compare
    from .jobs.convert import ConvertOptions as ConvertOptions
    from .jobs.convert import convert as convert
    from .jobs.convert import plan_conversion as plan_conversion
    from .jobs.demo import demonstrate as demonstrate
    from .jobs.evaluate import EvaluateOptions as EvaluateOptions
    from .jobs.evaluate import evaluate as evaluate
    from .jobs.inspect import inspect as inspect
    from .jobs.mask import MaskOptions as MaskOptions
    from .jobs.mask import make_mask as make_mask
    from .jobs.push import convert_and_push as convert_and_push
    from .jobs.report import write_report as write_report
    from .jobs.reproduce import Reproduction as Reproduction
    from .jobs.reproduce import reproduce as reproduce
    from .jobs.sweep import SweepOptions as SweepOptions
    from .jobs.sweep import summarise_results as summarise_results
    from .jobs.sweep import sweep as sweep
    from .jobs.verify import VerifyOptions as VerifyOptions
    from .jobs.verify import verify_conversion as verify_conversion
    from .jobs.verify import verify_files as verify_files
    from .mask import HeadMask as HeadMask
    from .mask import HeadScores as HeadScores
    from .verify.report import Report as Report
    from .version import __version__ as __version__

# Resolved on first use, so that the command line answers before numpy is imported.
_HOMES = {
    ".checkpoint": ("Checkpoint",),
    ".errors": (
        "CalibrationError",
        "CheckpointError",
        "CompensationError",
        "EvaluatorError",
        "HubError",
        "MaskError",
        "S4ConvertError",
        "StorageError",
        "UsageError",
        "VerificationError",
    ),
    ".hub.push": ("plan_push", "push"),
    ".jobs.compare": ("compare",),
    ".jobs.convert": ("ConvertOptions", "convert", "plan_conversion"),
    ".jobs.demo": ("demonstrate",),
    ".jobs.evaluate": ("EvaluateOptions", "evaluate"),
    ".jobs.inspect": ("inspect",),
    ".jobs.mask": ("MaskOptions", "make_mask"),
    ".jobs.push": ("convert_and_push",),
    ".jobs.report": ("write_report",),
    ".jobs.reproduce": ("Reproduction", "reproduce"),
    ".jobs.sweep": ("SweepOptions", "summarise_results", "sweep"),
    ".jobs.verify": ("VerifyOptions", "verify_conversion", "verify_files"),
    ".mask": ("HeadMask", "HeadScores"),
    ".verify.report": ("Report",),
    ".version": ("__version__",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return __all__
