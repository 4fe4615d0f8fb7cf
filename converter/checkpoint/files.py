"""The names of a checkpoint's files, and how files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import strict_json
from ..disk import read_file
from ..errors import CheckpointError, enough_memory

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_SINGLE_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
MANIFEST_FILE = "s4convert.json"

# The Hub writes it into every repository, and rewrites it; it is no part of a checkpoint.
GIT_ATTRIBUTES_FILE = ".gitattributes"

# Where git and the Hub's client keep things of their own; the Hub takes neither.
TOOL_DIRECTORIES = (".git", ".cache")


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file *path*; CheckpointError where it is none, StorageError where it cannot be read."""
    text = read_file(path, CheckpointError)
    try:
        with enough_memory(str(path)):
            content = strict_json.parse(text.decode("utf-8"))  # of bytes, Python would take UTF-16 and more
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object; restore the file")
    return content
