"""Every error that the package raises on purpose.

::

    S4ConvertError
      UsageError            2   the request itself: paths, options
      CheckpointError       2   a checkpoint that cannot be read or is not supported
      MaskError             2   a mask that cannot be read or does not fit the checkpoint
      CompensationError     2   a compensation that cannot be fitted: its statistics, or their lack
      VerificationError     1   the written checkpoint is not what was asked for
      StorageError          3   the disk: no space, no permission, files changing underneath

The number is the process's exit code. A message is one line that says what is wrong, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


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


class CompensationError(S4ConvertError):
    """A compensation cannot be fitted: its statistics are missing, malformed or do not determine it."""

    exit_code = 2


class VerificationError(S4ConvertError):
    """The written checkpoint failed a check; it was not committed."""

    exit_code = 1


class StorageError(S4ConvertError):
    """The disk refused: no space, no permission, or a file changed while it was read."""

    exit_code = 3
