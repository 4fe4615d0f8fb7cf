"""Writing the staged checkpoint: unchanged spans are copied by the kernel, edited spans are computed.

An edit keeps its tensor's dtype and shape, so a safetensors header stays as it is, and every byte outside the
edited spans is the input's byte.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import OVERFLOW, encode
from ..disk import sync_file
from ..errors import CheckpointError, StorageError
from ..progress import Advance
from .assembly import Piece
from .plan import Edit, Plan

COPY_BYTES = 64 << 20  # so that progress moves and an interrupt is heard
EDIT_BYTES = 1 << 20  # stored bytes of a block of rows; its float32 working copies bound the memory of an edit
SEGMENT_BYTES = 256 << 20  # a large shard is written by several threads

# What file systems, and sandboxes, answer that do not copy inside the kernel.
_NO_KERNEL_COPY = frozenset((errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF))


class DiskFlusher:
    """Brings written files to the disk while the next ones are being written and checked."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="flush")
        self._pending: list[Future[None]] = []

    def submit(self, path: Path) -> None:
        """Start bringing *path* to the disk."""
        self._pending.append(self._executor.submit(sync_file, path))

    def wait(self) -> None:
        """Return when every submitted file is on the disk; StorageError if the disk refused one."""
        for future in self._pending:
            future.result()

    def close(self) -> None:
        """Forget what has not been started."""
        self._executor.shutdown(wait=True, cancel_futures=True)


@contextmanager
def disk_flusher() -> Iterator[DiskFlusher]:
    flusher = DiskFlusher()
    try:
        yield flusher
    finally:
        flusher.close()


def stage(
    checkpoint: Checkpoint, plan: Plan, directory: Path, flusher: DiskFlusher, *, jobs: int, advance: Advance
) -> None:
    """Write *checkpoint* with *plan*'s edits into the empty *directory*, by *jobs* threads.

    *advance* is told the number of bytes of every piece that is done. The files are given to *flusher*;
    they are on the disk when it says so. The bytes written do not depend on *jobs*. Permissions are under the umask.

    Raises:
        CheckpointError: a weight that an edit reads is not finite, or its new value overflows the stored dtype.
        StorageError: the disk refused, or an input file became shorter while it was copied.
    """
    stop = threading.Event()
    for file in plan.files:
        (directory / file.name).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, file.mode)
        try:
            os.truncate(descriptor, file.size)
            advance(_write(descriptor, file.head, 0))
        finally:
            os.close(descriptor)
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="write") as executor:
        by_file = {
            file.name: [
                executor.submit(_write_segment, checkpoint, plan, segment, directory / file.name, stop, advance)
                for piece in file.pieces
                for segment in _segments(piece)
            ]
            for file in plan.files
        }
        try:
            for name, segments in by_file.items():
                for segment in segments:
                    segment.result()
                flusher.submit(directory / name)
        except BaseException:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _segments(piece: Piece) -> list[Piece]:
    """*piece* cut up, so that several threads can write it; a tensor that must be gathered stays in one."""
    if piece.tensor is not None and not piece.tensor.is_contiguous:
        return [piece]
    return [
        replace(
            piece,
            begin=piece.begin + at,
            size=min(SEGMENT_BYTES, piece.size - at),
            source_begin=piece.source_begin + at,
        )
        for at in range(0, piece.size, SEGMENT_BYTES)
    ]


def _write_segment(
    checkpoint: Checkpoint, plan: Plan, segment: Piece, path: Path, stop: threading.Event, advance: Advance
) -> None:
    """Write *segment* into the file *path*: an edit belongs to the segment that it begins in."""
    name, edits = segment.source, plan.edits_in(segment)
    source = os.open(checkpoint.path / name, os.O_RDONLY)
    target = os.open(path, os.O_WRONLY)
    try:
        if segment.tensor is not None and not segment.tensor.is_contiguous:
            advance(_write(target, checkpoint.read_bytes(segment.tensor), segment.begin))
            for edit in edits:
                at = segment.begin + edit.first * edit.tensor.row_bytes
                _write_edit(checkpoint, edit, target, at, stop, lambda _: None)
            return
        begin, end = segment.source_begin, segment.source_begin + segment.size
        shift = segment.begin - begin
        position = max([begin, *(min(edit.end, end) for edit in edits if edit.begin < begin)])
        for edit in edits:
            if not begin <= edit.begin < end:
                continue
            _copy(source, target, position, edit.begin, shift, name, stop, advance)
            _write_edit(checkpoint, edit, target, edit.begin + shift, stop, advance)
            position = min(edit.end, end)
        _copy(source, target, position, end, shift, name, stop, advance)
    except OSError as error:
        raise StorageError(f"{name}: cannot be copied to OUT: {error.strerror}; OUT is as it was") from error
    finally:
        os.close(source)
        os.close(target)


def _copy(
    source: int, target: int, begin: int, end: int, shift: int, name: str, stop: threading.Event, advance: Advance
) -> None:
    """Copy the bytes [begin, end) of *source* to *target*, *shift* bytes further on."""
    while begin < end and not stop.is_set():
        size = min(COPY_BYTES, end - begin)
        try:
            copied = os.copy_file_range(source, target, size, begin, begin + shift)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            copied = 0
        if not copied:  # the kernel cannot, or the file has come to its end
            copied = _write(target, os.pread(source, min(size, EDIT_BYTES), begin), begin + shift)
        if not copied:
            raise StorageError(f"{name}: became shorter while it was copied; start again when IN is at rest")
        begin += copied
        advance(copied)


def _write_edit(
    checkpoint: Checkpoint, edit: Edit, target: int, begin: int, stop: threading.Event, advance: Advance
) -> None:
    """Write *edit*'s rows into *target*, from byte *begin* on."""
    tensor = edit.tensor
    where = f"{checkpoint.path / tensor.shard}: {tensor.name} (layer {edit.layer})"
    rows_per_block = edit.rows_per_block(EDIT_BYTES) if tensor.is_contiguous else edit.count
    for first in range(edit.first, edit.first + edit.count, rows_per_block):
        if stop.is_set():
            return
        rows = checkpoint.read_rows(tensor, first, min(rows_per_block, edit.first + edit.count - first))
        if not np.isfinite(rows).all():
            raise CheckpointError(f"{where} holds NaN or infinity; mend the checkpoint first")
        with np.errstate(over="ignore"):
            edited = edit.transform(rows, first - edit.first)
        if not -OVERFLOW[tensor.dtype] < float(edited.min()) <= float(edited.max()) < OVERFLOW[tensor.dtype]:
            raise CheckpointError(
                f"{where} would overflow {tensor.dtype} when compensated; store it as F32, or use `compensation='none'`"
            )
        at = begin + (first - edit.first) * tensor.row_bytes
        advance(_write(target, encode(edited, tensor.dtype), at))


def _write(target: int, data: bytes, offset: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
    return len(data)
