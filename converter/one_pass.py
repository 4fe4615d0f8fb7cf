"""One pass over files: what is written is read back, checked and hashed while it is still in the page cache.

A file is written in *parts* and checked in *steps*, which know nothing of each other: a step is taken when all parts
before its end are on the file system, is read through the file's descriptor, checked by any thread, and hashed, from
the same memory, in its turn. So all threads are busy with one large file as with many small ones; a thread that has
a file to itself does with each block one thing after the other, while the block is in the processor's cache.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from .errors import StorageError
from .progress import Advance

BLOCK_BYTES = 512 << 10  # so that what is read of both sides stays in the processor's cache until it is hashed
RUN_AHEAD_BYTES = 32 << 20  # by which a file is written before it is checked, at most
PASSED_BYTES = 8 << 20  # of which a file is told at a time


@dataclass(frozen=True)
class Part:
    """What *write*, given the file's descriptor, writes from byte *begin* on, up to the next part."""

    begin: int
    write: Callable[[int], object]


@dataclass(frozen=True)
class Step:
    """The bytes [*begin*, *begin* + *size*), which *check* is given as they stand in the file."""

    begin: int
    size: int
    check: Callable[[memoryview], object]


@dataclass(frozen=True)
class Begun:
    """A file that stands, at its full *size*. Its *parts* are in their order; *steps* leave no byte out."""

    descriptor: int
    size: int
    parts: Iterator[Part]
    steps: Iterator[Step]


class Passed(Protocol):
    """A file that a pass goes over."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def size(self) -> int:
        """About how many bytes it has; large files come first."""

    def begin(self) -> Begun:
        """Open it, or make it."""

    def written(self, descriptor: int) -> None:
        """Told when the last part is written, before the last step is taken."""

    def passed(self, descriptor: int, begin: int, size: int) -> None:
        """Told which bytes are written, checked and hashed, in their order, many at a time; the last few are not."""

    def end(self, descriptor: int, sha256: str) -> None:
        """Told when all is checked and hashed, before the descriptor is closed."""


def go_over(files: Sequence[Passed], *, jobs: int, advance: Advance) -> None:
    """Write, check and hash *files* by *jobs* threads; *advance* is told the bytes of every step that is done.

    Raises:
        BaseException: the first that a part, a step or a method of a file has raised; all threads have ended then.
        StorageError: a file became shorter while it was read.
    """
    going = _Pass(files, jobs, advance)
    try:
        with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="pass") as executor:
            workers = [executor.submit(going.work) for _ in range(jobs)]
            try:
                for worker in workers:
                    worker.result()
            finally:
                going.stop()
    finally:
        going.close()


@dataclass(eq=False)
class _Lane:
    """Where the pass stands in one file."""

    file: Passed
    begun: Begun | None = None
    part: Part | None = None  # the next one
    being_written: dict[int, int] = field(default_factory=dict)  # the begin of each part that a thread is at
    parts_taken: int = 0
    step: Step | None = None  # the next one
    steps_taken: int = 0
    checked: dict[int, _Read] = field(default_factory=dict)  # what waits for its turn to be hashed
    steps_hashed: int = 0
    hashed_bytes: int = 0
    told_bytes: int = 0
    is_hashing: bool = False
    is_ended: bool = False
    threads: int = 0  # that work on it
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def written_bytes(self) -> int:
        """How far the file is written without a gap."""
        assert self.begun is not None
        return min(self.being_written.values(), default=self.begun.size if self.part is None else self.part.begin)

    @property
    def is_done(self) -> bool:
        is_written = self.part is None and not self.being_written
        return is_written and self.step is None and self.steps_hashed == self.steps_taken


@dataclass(frozen=True)
class _Read:
    """The *data* of a step, in a *buffer* that others wait for."""

    data: memoryview
    buffer: bytearray


class _Pass:
    """What the threads of a pass share. Methods that begin with ``_take`` are called with its lock held."""

    def __init__(self, files: Sequence[Passed], jobs: int, advance: Advance) -> None:
        self._lock = threading.Condition()
        self._new = sorted((_Lane(file) for file in files), key=lambda lane: lane.file.size)  # the last one comes first
        self._begun: list[_Lane] = []
        self._left = len(self._new)
        self._buffers = [bytearray(BLOCK_BYTES) for _ in range(2 * jobs)]
        self._advance = advance
        self._is_stopped = False

    def stop(self) -> None:
        """Let every thread end when it has done what it is at."""
        with self._lock:
            self._is_stopped = True
            self._lock.notify_all()

    def close(self) -> None:
        """Close what is open still, because the pass was stopped."""
        for lane in self._begun:
            if lane.begun is not None and not lane.is_ended:
                os.close(lane.begun.descriptor)

    def work(self) -> None:
        """What each thread does until nothing is left, or one has failed."""
        lane: _Lane | None = None
        try:
            while True:
                with self._lock:
                    while (taken := self._take(lane)) is None:
                        if self._is_stopped or not self._left:
                            return
                        self._lock.wait()
                lane, do = taken
                do()
        except BaseException:
            self.stop()
            raise

    def _take(self, last: _Lane | None) -> tuple[_Lane, Callable[[], None]] | None:
        """What to do next, in the file *last* if there is something: what a thread has written, it checks."""
        if self._is_stopped:
            return None
        if last is not None:
            do = self._take_from(last)
            if do is not None:
                return last, do
            last.threads -= 1
        found = self._take_elsewhere()
        if found is not None:
            found[0].threads += 1
        elif last is not None:
            last.threads += 1
        return found

    def _take_elsewhere(self) -> tuple[_Lane, Callable[[], None]] | None:
        """A file that no thread is at, or a new one, or else one with few threads."""
        for lane in sorted(self._begun, key=lambda lane: lane.threads):
            if lane.threads and self._new:
                break
            do = self._take_from(lane)
            if do is not None:
                return lane, do
        if not self._new:
            return None
        lane = self._new.pop()
        self._begun.append(lane)
        return lane, partial(self._begin, lane)

    def _take_from(self, lane: _Lane) -> Callable[[], None] | None:
        if lane.begun is None:  # a thread is at it
            return None
        step, part = lane.step, lane.part
        if step is not None and self._buffers and step.begin + step.size <= lane.written_bytes:
            number, lane.steps_taken = lane.steps_taken, lane.steps_taken + 1
            lane.step = next(lane.begun.steps, None)
            return partial(self._check, lane, number, step, self._buffers.pop())
        if part is not None and part.begin < lane.hashed_bytes + RUN_AHEAD_BYTES:
            number, lane.parts_taken = lane.parts_taken, lane.parts_taken + 1
            lane.being_written[number] = part.begin
            lane.part = next(lane.begun.parts, None)
            return partial(self._write, lane, number, part)
        return None

    def _begin(self, lane: _Lane) -> None:
        begun = lane.file.begin()
        try:
            part, step = next(begun.parts, None), next(begun.steps, None)
            if part is None:
                lane.file.written(begun.descriptor)
        except BaseException:
            os.close(begun.descriptor)
            raise
        with self._lock:
            lane.begun, lane.part, lane.step = begun, part, step
        self._end(lane)

    def _write(self, lane: _Lane, number: int, part: Part) -> None:
        assert lane.begun is not None
        part.write(lane.begun.descriptor)
        with self._lock:
            is_last = lane.part is None and len(lane.being_written) == 1
            if not is_last:
                del lane.being_written[number]
        if is_last:  # the others wait for its step till it is told
            lane.file.written(lane.begun.descriptor)
            with self._lock:
                del lane.being_written[number]
        self._end(lane)

    def _check(self, lane: _Lane, number: int, step: Step, buffer: bytearray) -> None:
        assert lane.begun is not None
        whole = buffer if step.size <= len(buffer) else bytearray(step.size)
        data = memoryview(whole)[: step.size]
        read_into(lane.begun.descriptor, step.begin, data, lane.file.name)
        step.check(data)
        with self._lock:
            lane.checked[number] = _Read(data, buffer)
        while (read := self._next_to_hash(lane)) is not None:
            lane.digest.update(read.data)
            passed = lane.hashed_bytes + len(read.data) - lane.told_bytes
            if passed >= PASSED_BYTES:
                lane.file.passed(lane.begun.descriptor, lane.told_bytes, passed)
                lane.told_bytes += passed
            with self._lock:
                lane.is_hashing = False
                lane.steps_hashed += 1
                lane.hashed_bytes += len(read.data)
                self._buffers.append(read.buffer)
                self._lock.notify_all()
            self._advance(len(read.data))
        self._end(lane)

    def _next_to_hash(self, lane: _Lane) -> _Read | None:
        """What is to be hashed by the thread that asks: None where another is at it, or it has not been checked."""
        with self._lock:
            if lane.is_hashing or self._is_stopped or lane.steps_hashed not in lane.checked:
                return None
            lane.is_hashing = True
            return lane.checked.pop(lane.steps_hashed)

    def _end(self, lane: _Lane) -> None:
        """Let the others go on, and end *lane* where it is done."""
        with self._lock:
            self._lock.notify_all()
            if not lane.is_done or lane.is_ended:
                return
            lane.is_ended = True
            self._begun.remove(lane)
        assert lane.begun is not None
        try:
            lane.file.end(lane.begun.descriptor, lane.digest.hexdigest())
        finally:
            os.close(lane.begun.descriptor)
        with self._lock:
            self._left -= 1
            self._lock.notify_all()


def read_into(descriptor: int, offset: int, data: memoryview, name: str) -> None:
    """Fill *data* with the bytes from *offset* on of the open file *name*; StorageError where it ends before."""
    while data:
        count = os.preadv(descriptor, [data], offset)
        if not count:
            raise StorageError(f"{name}: became shorter while it was read; start again when it is at rest")
        data, offset = data[count:], offset + count
