"""Which files hold a checkpoint's weights: what stock loaders would read, single or by an index."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from ..errors import CheckpointError
from .families import find_weights
from .files import INDEX_FILE, TORCH_INDEX_FILE, TORCH_SINGLE_FILE, read_json_object
from .safetensors_header import read_header
from .tensors import WeightFile
from .torch_file import read_torch_file, warn_of_old_torch


def open_shards(path: Path, entries: Collection[str]) -> tuple[dict[str, WeightFile], str | None, bool]:
    """(shards, the index that names them, whether they are torch's): what stock loaders would read, in their order.

    *entries* are the names of what stands in the directory *path*.
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


def read_weight_map(index: Path) -> dict[str, str]:
    """Which shard holds each tensor, as the file *index* says.

    Raises:
        CheckpointError: the file is malformed, or a shard's name is not a plain one.
        StorageError: the file cannot be read.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; restore the file")
    for tensor, shard in weight_map.items():
        # A plain name only: neither reading nor publishing may ever reach outside the directory.
        if not isinstance(shard, str) or Path(shard).name != shard or {"\0", "\\"} & set(shard) or shard in (".", ".."):
            raise CheckpointError(f"{index}: {tensor} is mapped to {shard!r}, which is not a plain file name")
    return weight_map
