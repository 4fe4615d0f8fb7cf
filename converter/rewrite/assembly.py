"""Which files OUT consists of, and from where in IN each of their bytes comes. Pure: nothing is read or written.

The shards of a safetensors checkpoint stay what they are, header and all. Those of a ``.bin`` checkpoint are built
anew as safetensors, with an index where there is more than one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, StoredTensor
from ..checkpoint.safetensors_header import DTYPE_BITS, format_header


@dataclass(frozen=True)
class Piece:
    """*size* bytes of a file of OUT, from *begin* on: those of IN's file *source* from *source_begin* on.

    Where the piece is one *tensor* of a shard that is built anew, it is that tensor's rows.
    """

    begin: int
    size: int
    source: str
    source_begin: int
    tensor: StoredTensor | None = None


@dataclass(frozen=True)
class OutputFile:
    """One file of OUT: the bytes *head*, then its *pieces*, which leave no gap; *mode* is its permissions."""

    name: str
    head: bytes
    pieces: tuple[Piece, ...]
    mode: int = 0o666

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.head) + sum(piece.size for piece in self.pieces)


def assemble(
    checkpoint: Checkpoint, shard_bytes: int | None = None, *, own_files: Collection[str] = ()
) -> tuple[OutputFile, ...]:
    """The files of *checkpoint*'s conversion, without the manifest and *own_files*, which OUT says itself.

    *shard_bytes* bounds the tensors of a shard that is built anew; None keeps IN's shards one for one.
    """
    if not checkpoint.is_torch:
        return tuple(_copy(checkpoint, name) for name in checkpoint.stamps if name not in own_files)
    groups = _groups(checkpoint, shard_bytes)
    names = [f"model-{number:05}-of-{len(groups):05}.safetensors" for number in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = [SINGLE_FILE]
    files = [_build(name, group) for name, group in zip(names, groups, strict=True)]
    if len(groups) > 1:
        files.append(_build_index(names, groups))
    return (*files, *(_copy(checkpoint, name) for name in checkpoint.sidecars if name not in own_files))


def _copy(checkpoint: Checkpoint, name: str) -> OutputFile:
    stamp = checkpoint.stamps[name]
    mode = stamp.mode & 0o777 | 0o600  # whoever made OUT may read and write it
    return OutputFile(name, b"", (Piece(0, stamp.size, name, 0),), mode)


def _groups(checkpoint: Checkpoint, shard_bytes: int | None) -> list[list[StoredTensor]]:
    """The tensors of each shard to build."""
    if shard_bytes is None:
        by_shard: dict[str, list[StoredTensor]] = {shard: [] for shard in checkpoint.shards}
        for tensor in checkpoint.tensors.values():
            by_shard[tensor.shard].append(tensor)
        return [group for group in by_shard.values() if group]
    groups: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in checkpoint.tensors.values():
        if groups[-1] and size + tensor.entry.num_bytes > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.entry.num_bytes
    return groups


def _build(name: str, tensors: Sequence[StoredTensor]) -> OutputFile:
    # Wide items first, so that every tensor is aligned; the order is otherwise IN's.
    tensors = sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor.dtype])
    head = format_header([(t.name, t.dtype, t.shape, t.entry.num_bytes) for t in tensors])
    pieces = []
    begin = len(head)
    for tensor in tensors:
        pieces.append(Piece(begin, tensor.entry.num_bytes, tensor.shard, tensor.entry.begin, tensor))
        begin += tensor.entry.num_bytes
    return OutputFile(name, head, tuple(pieces))


def _build_index(names: Sequence[str], groups: Sequence[Sequence[StoredTensor]]) -> OutputFile:
    weight_map = {tensor.name: name for name, group in zip(names, groups, strict=True) for tensor in group}
    size = sum(tensor.entry.num_bytes for group in groups for tensor in group)
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    return OutputFile(INDEX_FILE, (json.dumps(content, indent=2) + "\n").encode("ascii"), ())
