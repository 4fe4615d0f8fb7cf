"""Is the converted checkpoint, byte for byte, what the mask asks of the original?

Written from the definition of an edit (see :func:`expected_bytes`), not from the plan: a mistake in the plan
or the writer must not be able to vouch for itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from converter.checkpoint import INDEX_FILE, Checkpoint, StoredTensor, read_json_object
from converter.checkpoint.dtypes import decode, encode
from converter.checkpoint.file_span import read_span
from converter.checkpoint.safetensors_header import SafetensorsHeader
from converter.errors import StorageError, VerificationError
from converter.mask import HeadMask
from converter.progress import Progress
from converter.rewrite.compensation import column_factors

BLOCK_BYTES = 256 << 10  # small enough to stay in the processor's cache between the comparison and the hash


@dataclass(frozen=True)
class StructureReport:
    """What the structure check saw: *digests* maps every file to its (size, sha256)."""

    digests: Mapping[str, tuple[int, str]]
    identical_tensors: int
    edited_tensors: int
    sidecars: int


def check_structure(
    original: Checkpoint,
    converted: Checkpoint,
    mask: HeadMask,
    compensation: str,
    *,
    jobs: int,
    progress: Progress,
) -> StructureReport:
    """Compare *converted* with *original*, every byte of every file, by *jobs* threads.

    Same files, same headers, tensors, dtypes, shapes and head counts; sidecars and tensors
    that the mask does not touch are byte-identical; touched ones hold :func:`expected_bytes`.
    *progress* is told the number of bytes of every piece that is done.

    Raises:
        VerificationError: the first difference, by file and tensor.
        StorageError: a file cannot be read.
    """
    _check_files(original, converted)
    if converted.geometry != original.geometry:
        raise VerificationError(f"{converted.path}: its geometry is not the original's; convert again")
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="check") as executor:
        checks = {
            name: executor.submit(_check_file, original, converted, name, mask, compensation, stop, progress)
            for name in converted.stamps
        }
        try:
            digests = {name: (converted.stamps[name].size, checks[name].result()) for name in sorted(checks)}
        except OSError as error:
            raise StorageError(f"{error.filename or 'a file'}: cannot be read: {error.strerror}") from error
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
    edited = sum(_is_touched(original, tensor, mask) for tensor in original.tensors.values())
    return StructureReport(digests, len(original.tensors) - edited, edited, len(original.sidecars))


def expected_bytes(
    original: Checkpoint, tensor: StoredTensor, first: int, count: int, mask: HeadMask, compensation: str
) -> bytes:
    """What rows [first, first + count) of *original*'s *tensor* must be after a conversion."""
    data = original.read_bytes(tensor, first, count)
    layer, held = original.projections_in(tensor) or (0, ())
    if not held or not mask.pruned[layer]:
        return data
    geometry = original.geometry
    if held[0].projection == "o":
        if held[0].kind == "bias":
            return data
        factors = column_factors(mask, layer, geometry, compensation)
        values = decode(data, tensor.dtype).reshape(-1, tensor.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            values = values * factors
        values[:, factors == 0] = 0.0
        return encode(values, tensor.dtype)
    rows = np.frombuffer(bytearray(data), np.uint8).reshape(-1, tensor.row_bytes)
    numbers = np.arange(first, first + count)
    for part in held:
        silenced = mask.pruned[layer] if part.projection == "q" else mask.pruned_kv_heads(layer, geometry)
        within = (part.first <= numbers) & (numbers < part.first + part.count)
        rows[within & np.isin((numbers - part.first) // geometry.head_dim, silenced)] = 0
    return rows.tobytes()


def _check_files(original: Checkpoint, converted: Checkpoint) -> None:
    expected, found = set(original.stamps), set(converted.stamps)
    if original.is_torch:  # its shards become safetensors, in as many files as the conversion was told
        _check_rebuilt(original, converted)
        expected, found = set(original.sidecars), set(converted.sidecars) - {INDEX_FILE}
    for name in sorted(expected ^ found):
        state = "is missing" if name in expected else "does not stand in the original"
        raise VerificationError(f"{converted.path / name}: {state}; convert again")
    for name in converted.left_behind:
        raise VerificationError(
            f"{converted.path / name}: is no part of a conversion and may hold unpruned weights; remove it"
        )
    for name in sorted(expected):
        if converted.stamps[name].size != original.stamps[name].size:
            raise VerificationError(f"{converted.path / name}: its size is not the original's; convert again")


def _check_rebuilt(original: Checkpoint, converted: Checkpoint) -> None:
    """Refuse shards that lack a tensor, have one of another kind, or lack what stock loaders read beside them."""
    for name in sorted(set(original.tensors) | set(converted.tensors)):
        before, after = original.tensors.get(name), converted.tensors.get(name)
        if before is None or after is None:
            state = "has no" if after is None else "has another tensor,"
            raise VerificationError(f"{converted.path}: {state} {name}; convert again")
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            raise VerificationError(
                f"{converted.path / after.shard}: {name} is {after.dtype} {list(after.shape)}, not the original's "
                f"{before.dtype} {list(before.shape)}; convert again"
            )
    for shard, header in converted.shards.items():
        if not isinstance(header, SafetensorsHeader) or header.metadata.get("format") != "pt":
            raise VerificationError(f"{converted.path / shard}: its metadata lacks the format pt; convert again")
    index = converted.path / INDEX_FILE
    if index.is_file() and not isinstance(read_json_object(index).get("metadata"), dict):
        raise VerificationError(f"{index}: has no metadata, which stock loaders read; convert again")


def _is_touched(original: Checkpoint, tensor: StoredTensor, mask: HeadMask) -> bool:
    """Whether *tensor* holds projections of a layer that loses heads."""
    part = original.projections_in(tensor)
    return part is not None and bool(mask.pruned[part[0]])


def _check_file(
    original: Checkpoint,
    converted: Checkpoint,
    name: str,
    mask: HeadMask,
    compensation: str,
    stop: threading.Event,
    progress: Progress,
) -> str:
    """Compare one file of *converted* and return its sha256."""
    digest = hashlib.sha256()
    with ExitStack() as files:
        file = files.enter_context((converted.path / name).open("rb", 0))
        before = files.enter_context((original.path / name).open("rb", 0)) if name in original.stamps else None
        for span in _spans(original, converted, name, mask):
            for at in range(0, span.size, span.step):
                if stop.is_set():
                    return ""  # nobody waits for it any more
                size = min(span.step, span.size - at)
                found = read_span(file.fileno(), span.begin + at, size, converted.path / name)
                if span.tensor is not None:
                    first, count = at // span.tensor.row_bytes, size // span.tensor.row_bytes
                    wanted = expected_bytes(original, span.tensor, first, count, mask, compensation)
                elif before is not None:
                    wanted = read_span(before.fileno(), span.begin + at, size, original.path / name)
                else:
                    wanted = found
                if found != wanted:
                    raise VerificationError(_first_difference(original, converted, name, span, at, found, wanted, mask))
                digest.update(found)
                progress(size)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Span:
    """Bytes of a file of the converted checkpoint, from *begin* on, and what they are compared with.

    *tensor* is the original's tensor that they hold; without one, they are the same bytes of the original's file of
    that name, or, where it has no such file, a header or index, whose content was checked when it was read.
    """

    begin: int
    size: int
    tensor: StoredTensor | None

    @property
    def step(self) -> int:
        """How many bytes to compare at a time: whole rows of a tensor."""
        if self.tensor is None:
            return BLOCK_BYTES
        if not self.tensor.is_contiguous:
            return self.size  # gathering its rows means to read all of it
        return max(1, BLOCK_BYTES // self.tensor.row_bytes) * self.tensor.row_bytes


def _spans(original: Checkpoint, converted: Checkpoint, name: str, mask: HeadMask) -> Iterator[_Span]:
    """The file cut into spans: each touched tensor its own and what is between them as one, or each tensor its own."""
    is_copied = name in original.stamps
    shard = (original if is_copied else converted).shards.get(name)
    position = 0
    for entry in shard.entries if shard is not None else ():
        tensor = original.tensors[entry.name]
        if (is_copied and not _is_touched(original, tensor, mask)) or entry.begin == entry.end:
            continue
        yield _Span(position, entry.begin - position, None)
        yield _Span(entry.begin, entry.end - entry.begin, tensor)
        position = entry.end
    yield _Span(position, converted.stamps[name].size - position, None)


def _first_difference(
    original: Checkpoint,
    converted: Checkpoint,
    name: str,
    span: _Span,
    at: int,
    found: bytes,
    wanted: bytes,
    mask: HeadMask,
) -> str:
    byte = span.begin + at + next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    where = f"{converted.path / name}, byte {byte}"
    for entry in converted.shards[name].entries if name in converted.shards else ():
        if entry.begin <= byte < entry.end:
            where = f"{converted.path / name}: {entry.name}"
    part = original.projections_in(span.tensor) if span.tensor is not None else None
    if part is not None and mask.pruned[part[0]]:
        return f"{where} of layer {part[0]} is not what the mask asks for; convert again"
    return f"{where} is not the original's; convert again"
