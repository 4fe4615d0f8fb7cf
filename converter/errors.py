"""Every error that the package raises on purpose.

::

    S4ConvertError
      UsageError            2   the request itself: paths, options
      CheckpointError       2   a checkpoint that cannot be read or is not supported
      MaskError             2   a mask that cannot be read or does not fit the checkpoint
      CalibrationError      2   calibration data that cannot be read or cannot serve its purpose
      CompensationError     2   a compensation that cannot be fitted: its statistics, or their lack
      VerificationError     1   the written checkpoint is not what was asked for
      StorageError          3   the disk: no space, no permission, files changing underneath
      HubError              4   the Hugging Face Hub: not reached, refused, or not holding what was asked for

The number is the process's exit code. A message is one line that says what is wrong, where, and what to do.
"""

from __future__ import annotations

import reprlib
from typing import Any, ClassVar

MAX_SHOWN = 80  # characters of a value that a message shows

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 8
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """*value* as a message shows it: its repr, cut where it is long, always one line."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # an integer of more digits than Python will print
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


class S4ConvertError(Exception):
    """Base of all errors below; :attr:`exit_code` is what the command line exits with."""

    exit_code: ClassVar[int]


class UsageError(S4ConvertError):
    """The request cannot be carried out as put: a path or an option is wrong."""

    exit_code = 2


class CheckpointError(S4ConvertError):
    """A checkpoint (or one of its files) is malformed, contradictory or of an unsupported kind."""

    exit_code = 2


class MaskError(S4ConvertError):
    """A mask is malformed or does not fit the checkpoint's geometry."""

    exit_code = 2


class CalibrationError(S4ConvertError):
    """Calibration data is malformed, or not what a measurement needs."""

    exit_code = 2


class CompensationError(S4ConvertError):
    """A compensation cannot be fitted: its statistics are missing, malformed or do not determine it."""

    exit_code = 2


class VerificationError(S4ConvertError):
    """The written checkpoint failed a check; it was not committed."""

    exit_code = 1


class StorageError(S4ConvertError):
    """The disk refused: no space, no permission, or a file changed while it was read."""

    exit_code = 3


class HubError(S4ConvertError):
    """The Hugging Face Hub could not be reached, refused, or does not hold what was asked for or sent."""

    exit_code = 4
