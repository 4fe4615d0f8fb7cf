"""The files of weights that stock loaders read: a single file, or the shards that an index names."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ..errors import CheckpointError, shown
from .files import INDEX_FILE, SINGLE_FILE, TORCH_INDEX_FILE, TORCH_SINGLE_FILE, read_json_object
from .refusals import MISNAMED, OTHER_FORMATS, refuse_files
from .safetensors_header import MAX_NAME, read_header
from .tensors import WeightFile
from .torch_file import read_torch_file, warn_of_old_torch

_MAX_NAME_BYTES = 255  # that a file system takes


def open_shards(path: Path, entries: Collection[str]) -> tuple[dict[str, WeightFile], str | None, bool]:
    """(shards by name, the index that names them, whether they are ``.bin`` files) of the checkpoint *path*.

    *entries* are the names in the directory *path*.

    Raises:
        CheckpointError: the weights are missing or malformed, or contradict the index.
        StorageError: a file cannot be read.
    """
    found = find_weights(path, entries)
    is_torch = found in (TORCH_SINGLE_FILE, TORCH_INDEX_FILE)
    read = read_torch_file if is_torch else read_header
    if is_torch:
        warn_of_old_torch()
    if found in (INDEX_FILE, TORCH_INDEX_FILE):
        return _open_indexed(path, found, read), found, is_torch
    return {found: read(path / found)}, None, is_torch


def _open_indexed(path: Path, index_file: str, read: Callable[[Path], WeightFile]) -> dict[str, WeightFile]:
    index = path / index_file
    weight_map = read_weight_map(index)
    shards: dict[str, WeightFile] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise CheckpointError(f"{index}: names {shard}, which is missing; download it again")
        shards[shard] = read(path / shard)
    for shard, weights in shards.items():
        for entry in weights.entries:
            if weight_map.get(entry.name) != shard:
                raise CheckpointError(
                    f"{index}: {entry.name} stands in {shard}, but the index has it in "
                    f"{weight_map.get(entry.name, 'no file')}; rebuild the index"
                )
    held = {entry.name for weights in shards.values() for entry in weights.entries}
    missing = [name for name in weight_map if name not in held]
    if missing:
        raise CheckpointError(f"{index}: {missing[0]} is not in {weight_map[missing[0]]}; download that shard again")
    return shards


def find_weights(path: Path, entries: Collection[str]) -> str:
    """The file that stock loaders open first: weights or an index, safetensors before ``.bin``; or CheckpointError."""
    for single, index in ((SINGLE_FILE, INDEX_FILE), (TORCH_SINGLE_FILE, TORCH_INDEX_FILE)):
        if single in entries and index in entries:
            raise CheckpointError(
                f"{path}: has both {single} and {index}, and loaders differ in which they read; remove one"
            )
        if single in entries or index in entries:
            return single if single in entries else index
    refuse_files(path, entries, OTHER_FORMATS)
    refuse_files(path, entries, MISNAMED)
    raise CheckpointError(
        f"{path}: has none of {SINGLE_FILE}, {INDEX_FILE}, {TORCH_SINGLE_FILE}, {TORCH_INDEX_FILE}; "
        "download the weights as well"
    )


def read_weight_map(index: Path) -> dict[str, str]:
    """The shard of every tensor, as the file *index* states it; CheckpointError where it is malformed."""
    content = read_json_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; restore the file")
    if not isinstance(content.get("metadata"), dict):
        raise CheckpointError(f"{index}: has no metadata, without which stock loaders fail; add an empty object")
    plain: set[str] = set()
    for tensor, shard in weight_map.items():
        if len(tensor) > MAX_NAME:  # messages show it
            raise CheckpointError(f"{index}: tensor name {shown(tensor)} is not safe; restore the file")
        if not isinstance(shard, str) or (shard not in plain and not _is_plain(shard)):
            raise CheckpointError(f"{index}: {tensor} is mapped to {shown(shard)}, which is not a plain file name")
        plain.add(shard)
    return weight_map


def _is_plain(name: str) -> bool:
    """Whether *name* is of a file in the directory itself: nothing outside of it may be read or uploaded."""
    if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        return False
    return Path(name).name == name and not {"\0", "\\"} & set(name) and name not in ("", ".", "..")
