"""The files of a checkpoint: the names that stock code looks for, and how they are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .. import strict_json
from ..errors import CheckpointError, StorageError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_SINGLE_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
MANIFEST_FILE = "s4convert.json"

# Not a checkpoint's: which files of a repository git keeps elsewhere. The Hub puts one in every repository.
GIT_ATTRIBUTES_FILE = ".gitattributes"


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file *path*.

    Raises:
        CheckpointError: not a JSON object.
        StorageError: the file cannot be read.
    """
    try:
        content = strict_json.parse(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object; restore the file")
    return content


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
