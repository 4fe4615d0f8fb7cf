"""Writing the staged checkpoint: unchanged spans are copied by the kernel, edited spans are computed.

An edit keeps its tensor's dtype and shape, so a safetensors header stays as it is, and every byte outside the
edited spans is the input's byte. What is written is given to checks at once, see :mod:`~s4convert.one_pass`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint
from ..checkpoint.checkpoint import FileStamp
from ..checkpoint.dtypes import ITEM_BYTES, all_finite, decode, encode, every_value
from ..disk import ask_for, keep_sha256, sync
from ..errors import CheckpointError, StorageError, enough_memory
from ..one_pass import Begun, Part, Step, go_over
from ..progress import Advance
from .assembly import OutputFile, Piece
from .plan import ColumnEdit, Edit, Plan, RowEdit

COPY_BYTES = 512 << 10  # so that what is copied is checked while it is in the processor's cache
READ_AHEAD_BYTES = 8 << 20  # of IN: by itself, the kernel looks ahead by little where a file is opened for each block
EDIT_BYTES = 512 << 10  # stored bytes of a block of rows; its float32 working copies bound the memory of an edit
TABLE_BYTES = 1 << 20  # of a weight, from which on a table of all products is worth its making
LOOKED_UP_ROWS = 8  # at a time: numpy makes an index of 8 bytes of each number
_BACKDATED_NS = 10**9

# What file systems, and sandboxes, answer that do not copy inside the kernel, or share no blocks.
_NOT_BY_THE_KERNEL = frozenset(
    (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF, errno.ENOTTY)
)
_FICLONE = 0x40049409  # of linux/fs.h


class Checks(Protocol):
    """What checks the files of OUT while they are written, and knows nothing of the plan."""

    def steps(self, name: str) -> Iterator[Step]:
        """The steps in which the file *name*, which stands at its full size with its header, is checked."""

    def seen(self, name: str, sha256: str, status: os.stat_result) -> None:
        """Told the hash of what was checked; a file whose status is another one was changed since."""


class DiskFlusher:
    """Brings written files to the disk while the next ones are being written and checked."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="flush")
        self._pending: list[Future[None]] = []

    def submit(self, path: Path) -> None:
        """Start bringing *path* to the disk."""
        self._pending.append(self._executor.submit(_bring_to_the_disk, path))

    def wait(self) -> None:
        """Return when every submitted file is on the disk; StorageError if the disk refused one."""
        for future in self._pending:
            future.result()

    def close(self) -> None:
        """Forget what has not been started."""
        self._executor.shutdown(wait=True, cancel_futures=True)


def _bring_to_the_disk(path: Path) -> None:
    try:
        sync(path)
    except OSError as error:
        raise StorageError(f"{path.name}: cannot be brought to the disk: {error.strerror}; OUT is as it was") from error


@contextmanager
def disk_flusher() -> Iterator[DiskFlusher]:
    flusher = DiskFlusher()
    try:
        yield flusher
    finally:
        flusher.close()


def stage(
    checkpoint: Checkpoint,
    plan: Plan,
    directory: Path,
    flusher: DiskFlusher,
    checks: Checks,
    *,
    jobs: int,
    advance: Advance,
) -> None:
    """Write *checkpoint* with *plan*'s edits into the empty *directory* and let *checks* see it, by *jobs* threads.

    *advance* is told the number of bytes of every piece that is written and checked. The files are given to *flusher*;
    they are on the disk when it says so. The bytes written do not depend on *jobs*. Permissions are under the umask.

    Raises:
        CheckpointError: a weight that an edit reads is not finite, or its new value overflows the stored dtype.
        StorageError: the disk refused, or an input file became shorter while it was copied.
    """
    for file in plan.files:
        (directory / file.name).parent.mkdir(parents=True, exist_ok=True)
    go_over(
        [_Staged(checkpoint, plan, file, directory, flusher, checks) for file in plan.files], jobs=jobs, advance=advance
    )


@dataclass
class _Staged:
    """A *file* of OUT on its way into *directory*."""

    checkpoint: Checkpoint
    plan: Plan
    file: OutputFile
    directory: Path
    flusher: DiskFlusher
    checks: Checks
    status: os.stat_result | None = None

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def size(self) -> int:
        return self.file.size

    def begin(self) -> Begun:
        """Make the file at its full size, with its head, and with all of IN's where the file system can share it."""
        file, flags = self.file, os.O_RDWR | os.O_CREAT | os.O_EXCL
        target = os.open(self.directory / file.name, flags, file.mode)
        try:
            is_cloned = self._is_one_copy and _clone(self.checkpoint.path / file.pieces[0].source, target)
            os.truncate(target, file.size)
            _write(target, file.head, 0)
        except BaseException:
            os.close(target)
            raise
        return Begun(target, file.size, self._parts(is_cloned=is_cloned), self.checks.steps(file.name))

    def written(self, descriptor: int) -> None:
        """Backdate the file: a clock that ticks slowly could give what is written to it later the same time."""
        then = time.time_ns() - _BACKDATED_NS
        with suppress(OSError):  # some file systems let nobody set times
            os.utime(descriptor, ns=(then, then))
        self.status = os.fstat(descriptor)

    def passed(self, descriptor: int, begin: int, size: int) -> None:
        """Let the kernel write these bytes out now. It drops none that it has still to write, so they stay at hand."""
        with suppress(OSError):  # it is advice
            os.posix_fadvise(descriptor, begin, size, os.POSIX_FADV_DONTNEED)

    def end(self, descriptor: int, sha256: str) -> None:
        assert self.status is not None
        if FileStamp.from_status(os.fstat(descriptor)) == FileStamp.from_status(self.status):
            keep_sha256(descriptor, sha256)
            self.status = os.fstat(descriptor)  # which what was kept has given another ctime
        self.flusher.submit(self.directory / self.name)
        self.checks.seen(self.name, sha256, self.status)

    @property
    def _is_one_copy(self) -> bool:
        return not self.file.head and [piece.tensor for piece in self.file.pieces] == [None]

    def _parts(self, *, is_cloned: bool) -> Iterator[Part]:
        for piece in self.file.pieces:
            edits = self.plan.edits_in(piece)
            if piece.tensor is not None and not piece.tensor.is_contiguous:
                yield Part(piece.begin, partial(self._gather, piece, edits))
                continue
            position, end = piece.source_begin, piece.source_begin + piece.size
            for edit in edits:
                if not is_cloned:
                    yield from self._copies(piece, position, edit.begin)
                yield from self._blocks(piece, edit)
                position = edit.end
            if not is_cloned:
                yield from self._copies(piece, position, end)

    def _copies(self, piece: Piece, begin: int, end: int) -> Iterator[Part]:
        """The bytes [*begin*, *end*) of the piece's source, cut up."""
        shift = piece.begin - piece.source_begin
        while begin < end:
            cut = min(end, (begin + shift) // COPY_BYTES * COPY_BYTES + COPY_BYTES - shift)
            yield Part(begin + shift, partial(self._copy, piece.source, begin, cut, shift))
            begin = cut

    def _blocks(self, piece: Piece, edit: Edit) -> Iterator[Part]:
        rows_per_block = edit.rows_per_block(EDIT_BYTES)
        for first in range(edit.first, edit.first + edit.count, rows_per_block):
            count = min(rows_per_block, edit.first + edit.count - first)
            begin = edit.begin + (first - edit.first) * edit.tensor.row_bytes - piece.source_begin + piece.begin
            yield Part(begin, partial(self._edit, edit, first, count, begin))

    def _gather(self, piece: Piece, edits: tuple[Edit, ...], target: int) -> None:
        """Write a tensor whose rows do not follow each other in IN."""
        assert piece.tensor is not None
        with self._writing(piece.source):
            _write(target, self.checkpoint.read_bytes(piece.tensor), piece.begin)
        for edit in edits:
            self._edit(edit, edit.first, edit.count, piece.begin + edit.first * edit.tensor.row_bytes, target)

    def _copy(self, name: str, begin: int, end: int, shift: int, target: int) -> None:
        """Copy the bytes [begin, end) of IN's file *name* to *target*, *shift* bytes further on."""
        self._ask_ahead(name, begin, end - begin)
        with self._writing(name):
            source = os.open(f"{self.checkpoint.path}/{name}", os.O_RDONLY)
            try:
                while begin < end:
                    copied = _copy_some(source, target, begin, end, shift)
                    if not copied:
                        raise StorageError(
                            f"{name}: became shorter while it was copied; start again when IN is at rest"
                        )
                    begin += copied
            finally:
                os.close(source)

    def _edit(self, edit: Edit, first: int, count: int, begin: int, target: int) -> None:
        """Write the rows [first, first + count) of *edit* into *target*, from byte *begin* on."""
        tensor = edit.tensor
        where = f"{self.checkpoint.path}/{tensor.shard}: {tensor.name} (layer {edit.layer})"
        self._ask_ahead(tensor.shard, tensor.entry.begin + first * tensor.row_bytes, count * tensor.row_bytes)
        data = self.checkpoint.read_bytes(tensor, first, count)
        if not all_finite(data, tensor.dtype):
            raise CheckpointError(f"{where} holds NaN or infinity; mend the checkpoint first")
        with enough_memory(where):
            edited = _edited(edit, data, first - edit.first)
        if not all_finite(edited, tensor.dtype):
            raise CheckpointError(
                f"{where} would overflow {tensor.dtype} when compensated; store it as F32, or use `compensation='none'`"
            )
        with self._writing(tensor.shard):
            _write(target, edited, begin)

    def _ask_ahead(self, name: str, begin: int, size: int) -> None:
        """Once in so many bytes of IN's file *name*, have the kernel bring the next but one so many into its cache."""
        on = -begin % READ_AHEAD_BYTES
        if on < size:
            ask_for(self.checkpoint.path / name, begin + on + READ_AHEAD_BYTES, READ_AHEAD_BYTES)

    @staticmethod
    @contextmanager
    def _writing(name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{name}: cannot be copied to OUT: {error.strerror}; OUT is as it was") from error


def _clone(source: Path, target: int) -> bool:
    """Let the file *target* share all of *source*'s blocks; False where the file system cannot."""
    with source.open("rb", 0) as file:
        try:
            fcntl.ioctl(target, _FICLONE, file.fileno())
        except OSError as error:
            if error.errno not in _NOT_BY_THE_KERNEL:
                raise
            return False
    return True


def _copy_some(source: int, target: int, begin: int, end: int, shift: int) -> int:
    """Copy some of the bytes [begin, end) to *target*, *shift* bytes further on; how many, 0 where the file ends."""
    try:
        copied = os.copy_file_range(source, target, end - begin, begin, begin + shift)
    except OSError as error:
        if error.errno not in _NOT_BY_THE_KERNEL:
            raise
        copied = 0
    if copied:
        return copied
    return _write(target, os.pread(source, end - begin, begin), begin + shift)  # what the kernel cannot


def _edited(edit: Edit, data: bytearray, at: int) -> bytes:
    """What the stored rows *data*, of which the first is number *at* of the edit's, become."""
    dtype, columns = edit.tensor.dtype, edit.tensor.shape[1:]
    if isinstance(edit, RowEdit):
        return bytes(len(data))
    if isinstance(edit, ColumnEdit) and edit.tensor.entry.num_bytes >= TABLE_BYTES and ITEM_BYTES[dtype] == 2:
        factor = edit.fitted.only_factor
        if factor is not None:
            rows = np.empty((len(data) // edit.tensor.row_bytes, *columns), "<u2")
            products, numbers = _multiplied(dtype, factor), np.frombuffer(data, "<u2").reshape(rows.shape)
            for row in range(0, len(rows), LOOKED_UP_ROWS):
                some = slice(row, row + LOOKED_UP_ROWS)
                np.take(products, numbers[some], out=rows[some], mode="clip")
            rows.reshape(len(rows), edit.fitted.num_heads, -1)[:, list(edit.fitted.pruned)] = 0
            return rows.tobytes()
    with np.errstate(over="ignore"):
        return encode(edit.transform(decode(data, dtype).reshape(-1, *columns), at), dtype)


@lru_cache(maxsize=64)
def _multiplied(dtype: str, factor: float) -> npt.NDArray[np.uint16]:
    """What every number of 16 bits becomes when it is multiplied: one look is cheaper than to decode and encode it."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(encode(every_value(dtype) * np.float32(factor), dtype), "<u2")


def _write(target: int, data: bytes | bytearray, offset: int) -> int:
    view = memoryview(data)
    while view:
        written = os.pwrite(target, view, offset)
        view, offset = view[written:], offset + written
    return len(data)
