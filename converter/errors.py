"""Every error that the package raises on purpose; a message is one line: what is wrong, where, and what to do."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

MAX_SHOWN = 80  # characters of a value that a message shows

_SHORT = reprlib.Repr()
_SHORT.maxlist = _SHORT.maxdict = _SHORT.maxtuple = 8
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """*value* as a message shows it: its repr on one line, shortened where it is long."""
    try:
        text = " ".join(_SHORT.repr(value).split())
    except ValueError:  # an integer with more digits than Python prints
        return f"a {type(value).__name__} too long to show"
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


class S4ConvertError(Exception):
    """Base of all errors below; *exit_code* is the exit code of the command line."""

    exit_code: ClassVar[int] = 2


class UsageError(S4ConvertError):
    """A path or an option is wrong."""


class CheckpointError(S4ConvertError):
    """A checkpoint, or one of its files, is malformed, contradicts itself or is not supported."""


class MaskError(S4ConvertError):
    """A mask is malformed or does not fit the checkpoint's geometry."""


class CalibrationError(S4ConvertError):
    """Calibration data is malformed, or not what a measurement needs."""


class CompensationError(S4ConvertError):
    """A compensation cannot be fitted: its statistics are missing, malformed or do not determine it."""


class VerificationError(S4ConvertError):
    """The written checkpoint failed a check; it was not committed."""

    exit_code = 1


class StorageError(S4ConvertError):
    """The disk refused: no space, no permission, or a file changed while it was read."""

    exit_code = 3


class HubError(S4ConvertError):
    """The Hugging Face Hub cannot be reached, refuses, or does not hold what was asked for or sent."""

    exit_code = 4


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise StorageError in place of an OSError while *path*, or what is in it, is read."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
