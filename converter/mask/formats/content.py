"""The bytes of a mask or scores file, looked at before they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ... import strict_json
from ...errors import MaskError, StorageError

MAX_BYTES = 64 * 2**20  # a mask of the largest model takes kilobytes

Content = TypeVar("Content")


def read_bytes(path: Path) -> bytes:
    """The content of the file *path*.

    Raises:
        MaskError: there is no such file, it is no file (a directory, a pipe), or it is larger than 64 MB.
        StorageError: the disk refused.
    """
    try:
        if not path.exists():
            raise MaskError(f"{path}: no such file")
        if not path.is_file():
            raise MaskError(f"{path}: is not a file")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise MaskError(f"{path}: {size:,} bytes are too many for a mask, at most {MAX_BYTES:,} are read")
        with path.open("rb") as file:
            return file.read(MAX_BYTES)  # never more, should it grow
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def interpret_json(text: bytes, interpret: Callable[[Any], Content]) -> Content:
    """What *interpret* makes of the JSON *text*; where a number is not finite, it gets to say which one."""
    try:
        content = strict_json.parse(text)
    except strict_json.NotFiniteError as error:
        interpret(strict_json.parse(text, finite=False))
        raise MaskError(f"is not JSON ({error})") from error
    except ValueError as error:
        raise MaskError(f"is not JSON ({error})") from error
    return interpret(content)
