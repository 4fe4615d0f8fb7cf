"""A checkpoint's JSON files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converter import strict_json
from converter.errors import CheckpointError, StorageError


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
