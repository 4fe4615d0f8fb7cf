"""Reading a span of a file, all of it or an error."""

from __future__ import annotations

import os
from pathlib import Path

from converter.errors import StorageError


def read_span(descriptor: int, offset: int, size: int, path: Path) -> bytes:
    """The bytes [offset, offset + size) of the open file *path*.

    Raises:
        StorageError: the file ends before that.
        OSError: the disk refused.
    """
    data = os.pread(descriptor, size, offset)
    while len(data) < size:  # network file systems may give less than was asked for
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise StorageError(f"{path}: became shorter while it was read; start again when it is at rest")
        data += more
    return data
