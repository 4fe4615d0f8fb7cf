"""Every error that the package raises on purpose; a message is one line: what is wrong, where, and what to do."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

MAX_SHOWN = 80  # characters of a value that a message shows

# torch raises RuntimeError where the memory of the CPU or of a GPU is used up.
_TORCH_OUT_OF_MEMORY = re.compile("out of memory|annot allocate memory|can't allocate memory|not enough memory")

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


def printable(text: str) -> str:
    """*text* on one line, and without what a terminal would obey: control characters and the like become escapes.

    The escapes are those of JSON, so that JSON text stays what it is.
    """
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def text_of(lines: Iterable[str]) -> str:
    """The text of *lines*, each as :func:`printable` makes it: nothing in one can pretend to be another."""
    return "\n".join(map(printable, lines))


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


class EvaluatorError(S4ConvertError):
    """An outside evaluator failed, or its score is not where it was to be."""


class VerificationError(S4ConvertError):
    """The written checkpoint failed a check; it was not committed.

    *cause* is a word for a script where the reason is known, one of those in :mod:`s4convert.verify.cause`. *known* is
    what was seen of the two checkpoints until then, in the form of :meth:`~s4convert.verify.report.Report.to_json`.
    """

    exit_code = 1

    def __init__(self, message: str, *, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.known: dict[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """The outcome as a verification that passes gives it: its verdict, its cause, and what was seen."""
        unknown = {"mask": None, "compensation": None}
        return unknown | self.known | {"verdict": f"FAILED, {self}", "cause": self.cause}


class StorageError(S4ConvertError):
    """The disk refused: no space, no permission, or a file changed while it was read."""

    exit_code = 3


class OutOfMemoryError(S4ConvertError):
    """Something takes more memory than there is."""

    exit_code = 3


class HubError(S4ConvertError):
    """The Hugging Face Hub cannot be reached, refuses, or does not hold what was asked for or sent."""

    exit_code = 4


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """Raise StorageError in place of an OSError while *path*, or what is in it, is read."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Raise OutOfMemoryError, which names *what* was too large, in place of what Python, numpy and torch raise."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        said = str(error).partition("\n")[0]
        if isinstance(error, RuntimeError) and not _TORCH_OUT_OF_MEMORY.search(said):
            raise
        reason = f" ({said})" if said else ""
        raise OutOfMemoryError(f"{what}: not enough memory{reason}; free some, or use a larger machine") from error
