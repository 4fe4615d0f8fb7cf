"""Is the converted checkpoint, byte for byte, what the mask asks of the original?

Written from the definition of an edit (see :func:`expected_bytes`), not from the plan: a mistake in the plan
or the writer must not be able to vouch for itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from converter.checkpoint import Checkpoint, StoredTensor
from converter.checkpoint.dtypes import decode, encode
from converter.checkpoint.file_span import read_span
from converter.checkpoint.geometry import Geometry
from converter.checkpoint.layouts import projection_of
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
        names = list(original.stamps)
        checks = {
            name: executor.submit(_check_file, original, converted, name, mask, compensation, stop, progress)
            for name in names
        }
        try:
            digests = {name: (original.stamps[name].size, checks[name].result()) for name in sorted(names)}
        except OSError as error:
            raise StorageError(f"{error.filename or 'a file'}: cannot be read: {error.strerror}") from error
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
    edited = sum(_is_touched(original, tensor, mask) is not None for tensor in original.tensors.values())
    return StructureReport(digests, len(original.tensors) - edited, edited, len(original.sidecars))


def expected_bytes(
    data: bytes,
    tensor: StoredTensor,
    first_row: int,
    projection: str,
    kind: str,
    mask: HeadMask,
    layer: int,
    geometry: Geometry,
    compensation: str,
) -> bytes:
    """What rows of a projection's ``weight`` or ``bias`` (*kind*) must be after a conversion.

    *data* are the stored rows of *tensor* from *first_row* on, in the original.
    """
    if projection == "o":
        if kind == "bias":
            return data
        factors = column_factors(mask, layer, geometry, compensation)
        values = decode(data, tensor.dtype).reshape(-1, tensor.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):
            values = values * factors
        values[:, factors == 0] = 0.0
        return encode(values, tensor.dtype)
    silenced = mask.pruned[layer] if projection == "q" else mask.pruned_kv_heads(layer, geometry)
    rows = np.frombuffer(bytearray(data), np.uint8).reshape(-1, tensor.row_bytes)
    heads = np.arange(first_row, first_row + len(rows)) // geometry.head_dim
    rows[np.isin(heads, silenced)] = 0
    return rows.tobytes()


def _check_files(original: Checkpoint, converted: Checkpoint) -> None:
    expected, found = set(original.stamps), set(converted.stamps)
    for name in sorted(expected ^ found):
        state = "is missing" if name in expected else "does not stand in the original"
        raise VerificationError(f"{converted.path / name}: {state}; convert again")
    for name in sorted(expected):
        if converted.stamps[name].size != original.stamps[name].size:
            raise VerificationError(f"{converted.path / name}: its size is not the original's; convert again")


def _is_touched(original: Checkpoint, tensor: StoredTensor, mask: HeadMask) -> tuple[int, tuple[str, str]] | None:
    """(layer, projection and kind) of a tensor that the mask may change, or None."""
    key = original.family.layer_key(tensor.name)
    if key is None or not mask.pruned[key[0]]:
        return None
    part = projection_of(key[1])
    return None if part is None else (key[0], part)


def _check_file(
    original: Checkpoint,
    converted: Checkpoint,
    name: str,
    mask: HeadMask,
    compensation: str,
    stop: threading.Event,
    progress: Progress,
) -> str:
    """Compare one file and return its sha256."""
    digest = hashlib.sha256()
    with (original.path / name).open("rb", 0) as before, (converted.path / name).open("rb", 0) as after:
        for begin, end, tensor in _spans(original, name, mask):
            touched = None if tensor is None else _is_touched(original, tensor, mask)
            step = BLOCK_BYTES
            if tensor is not None and touched is not None:
                step = max(1, BLOCK_BYTES // tensor.row_bytes) * tensor.row_bytes
            for offset in range(begin, end, step):
                if stop.is_set():
                    return ""  # nobody waits for it any more
                size = min(step, end - offset)
                found = read_span(after.fileno(), offset, size, converted.path / name)
                wanted = read_span(before.fileno(), offset, size, original.path / name)
                if tensor is not None and touched is not None:
                    layer, (projection, kind) = touched
                    first_row = (offset - tensor.entry.begin) // tensor.row_bytes
                    wanted = expected_bytes(
                        wanted, tensor, first_row, projection, kind, mask, layer, original.geometry, compensation
                    )
                if found != wanted:
                    raise VerificationError(_first_difference(converted, name, offset, found, wanted, touched))
                digest.update(found)
                progress(size)
    return digest.hexdigest()


def _spans(original: Checkpoint, name: str, mask: HeadMask) -> Iterator[tuple[int, int, StoredTensor | None]]:
    """The file cut into spans: each touched tensor its own, everything between them as one."""
    position = 0
    if name in original.shards:
        for entry in original.shards[name].entries:
            tensor = original.tensors[entry.name]
            if _is_touched(original, tensor, mask) is None:
                continue
            yield position, entry.begin, None
            yield entry.begin, entry.end, tensor
            position = entry.end
    yield position, original.stamps[name].size, None


def _first_difference(
    converted: Checkpoint,
    name: str,
    offset: int,
    found: bytes,
    wanted: bytes,
    touched: tuple[int, tuple[str, str]] | None,
) -> str:
    byte = offset + next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
    where = f"{converted.path / name}, byte {byte}"
    for entry in converted.shards[name].entries if name in converted.shards else ():
        if entry.begin <= byte < entry.end:
            where = f"{converted.path / name}: {entry.name}"
    wrong = "is not the original's" if touched is None else f"of layer {touched[0]} is not what the mask asks for"
    return f"{where} {wrong}; convert again"
