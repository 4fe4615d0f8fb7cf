"""The content of a mask or scores file: its bytes, and their JSON."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ... import strict_json
from ...disk import read_file
from ...errors import MaskError, reading

MAX_BYTES = 64 * 2**20  # the mask of the largest model has kilobytes

Content = TypeVar("Content")


def read_bytes(path: Path) -> bytes:
    """The content of the file *path*.

    Raises:
        MaskError: there is no such file, it is a directory or a pipe, or it has more than :data:`MAX_BYTES`.
        StorageError: the file cannot be read.
    """
    with reading(path):
        if not path.exists():
            raise MaskError(f"{path}: no such file")
    return read_file(path, MaskError, MAX_BYTES)


def interpret_json(text: bytes, interpret: Callable[[Any], Content]) -> Content:
    """*interpret* of the parsed JSON *text*.

    Where a number is not finite, *interpret* runs all the same, because its MaskError tells the layer and the head.
    """
    try:
        content = strict_json.parse(text)
    except ValueError as error:
        if isinstance(error, strict_json.NotFiniteError):
            with suppress(ValueError):
                interpret(strict_json.parse(text, finite=False))
        raise MaskError(f"is not JSON ({error})") from error
    return interpret(content)
