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
from typing import NamedTuple, Protocol

from .disk import read_into
from .progress import Advance

BLOCK_BYTES = 512 << 10  # so that what is read of both sides stays in the processor's cache until it is hashed
RUN_AHEAD_BYTES = 32 << 20  # by which a file is written before it is checked, at most
PASSED_BYTES = 8 << 20  # of which a file is told at a time


class Part(NamedTuple):
    """What *write*, given the file's descriptor, writes from byte *begin* on, up to the next part."""

    begin: int
    write: Callable[[int], object]


class Step(NamedTuple):
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
    begun: Begun
    part: Part | None  # the next one
    step: Step | None  # the next one
    being_written: dict[int, int] = field(default_factory=dict)  # the begin of each part that a thread is at
    parts_taken: int = 0
    is_told: bool = False  # or about to be, that it is written
    steps_taken: int = 0
    checked: dict[int, tuple[memoryview, bytearray]] = field(default_factory=dict)  # it waits for its turn to be hashed
    steps_hashed: int = 0
    hashed_bytes: int = 0
    passed_bytes: int = 0
    is_ended: bool = False
    threads: int = 0  # that work on it
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def written_bytes(self) -> int:
        """How far the file is written without a gap; its last byte does not count before it is told so."""
        unwritten = self.begun.size - (not self.is_told) if self.part is None else self.part.begin
        return min(self.being_written.values(), default=unwritten)

    @property
    def is_done(self) -> bool:
        is_written = self.is_told and not self.being_written
        return is_written and self.step is None and self.steps_hashed == self.steps_taken


# What a thread does without the lock, and what it then, with the lock held, lets the others know.
_Work = Callable[[], Callable[[], object]]


class _Pass:
    """What the threads of a pass share. Methods that begin with ``_take`` are called with its lock held."""

    def __init__(self, files: Sequence[Passed], jobs: int, advance: Advance) -> None:
        self._lock = threading.RLock()  # entered for every block, and a Condition's way in is Python code
        self._changed = threading.Condition(self._lock)
        self._new = sorted(files, key=lambda file: file.size)  # the last one comes first
        self._begun: list[_Lane] = []
        self._left = len(self._new)
        self._waiting = 0  # threads that find nothing to do
        self._buffers = [bytearray(BLOCK_BYTES) for _ in range(2 * jobs)]
        self._advance = advance
        self._is_stopped = False

    def stop(self) -> None:
        """Let every thread end when it has done what it is at."""
        with self._lock:
            self._is_stopped = True
            self._changed.notify_all()

    def close(self) -> None:
        """Close what is open still, because the pass was stopped."""
        for lane in self._begun:
            os.close(lane.begun.descriptor)

    def work(self) -> None:
        """What each thread does until nothing is left, or one has failed."""
        lane: _Lane | None = None
        let_know: Callable[[], object] | None = None
        try:
            while True:
                with self._lock:
                    if let_know is not None:
                        let_know()
                        if self._waiting:
                            self._changed.notify_all()
                    while (taken := self._take(lane)) is None:
                        if self._is_stopped or not self._left:
                            return
                        self._waiting += 1
                        self._changed.wait()
                        self._waiting -= 1
                lane, do = taken
                let_know = do()
        except BaseException:
            self.stop()
            raise

    def _take(self, last: _Lane | None) -> tuple[_Lane | None, _Work] | None:
        """What to do next, in the file *last* if there is something: what a thread has written, it checks."""
        if self._is_stopped:
            return None
        if last is not None:
            do = self._take_from(last)
            if do is not None:
                return last, do
            last.threads -= 1
        lane, do = self._take_elsewhere()
        if do is None:
            lane = last
        if lane is not None:
            lane.threads += 1
        return None if do is None else (lane, do)

    def _take_elsewhere(self) -> tuple[_Lane | None, _Work | None]:
        """A file that no thread is at, or a new one, or else one with few threads."""
        for lane in sorted(self._begun, key=lambda lane: lane.threads):
            if lane.threads and self._new:
                break
            do = self._take_from(lane)
            if do is not None:
                return lane, do
        return None, partial(self._begin, self._new.pop()) if self._new else None

    def _take_from(self, lane: _Lane) -> _Work | None:
        """What is next to its end, so that it is done while it is in the processor's cache."""
        step, part = lane.step, lane.part
        if lane.steps_hashed in lane.checked:
            return partial(self._hash, lane, *lane.checked.pop(lane.steps_hashed))
        if step is not None and self._buffers and step.begin + step.size <= lane.written_bytes:
            number, lane.steps_taken = lane.steps_taken, lane.steps_taken + 1
            lane.step = next(lane.begun.steps, None)
            return partial(self._check, lane, number, step, self._buffers.pop())
        if part is None and not lane.is_told and not lane.being_written:
            lane.is_told = True
            part = Part(lane.begun.size - 1, lane.file.written)
        elif part is not None and part.begin < lane.hashed_bytes + RUN_AHEAD_BYTES:
            lane.part = next(lane.begun.parts, None)
        else:
            part = None
        if part is not None:
            number, lane.parts_taken = lane.parts_taken, lane.parts_taken + 1
            lane.being_written[number] = part.begin
            return partial(self._write, lane, number, part)
        if lane.is_done and not lane.is_ended:
            lane.is_ended = True
            self._begun.remove(lane)
            return partial(self._end, lane)
        return None

    def _begin(self, file: Passed) -> Callable[[], object]:
        begun = file.begin()
        try:
            lane = _Lane(file, begun, next(begun.parts, None), next(begun.steps, None))
        except BaseException:
            os.close(begun.descriptor)
            raise
        return partial(self._begun.append, lane)

    def _write(self, lane: _Lane, number: int, part: Part) -> Callable[[], object]:
        part.write(lane.begun.descriptor)
        return partial(lane.being_written.pop, number)

    def _check(self, lane: _Lane, number: int, step: Step, buffer: bytearray) -> Callable[[], object]:
        whole = buffer if step.size <= len(buffer) else bytearray(step.size)
        data = memoryview(whole)[: step.size]
        read_into(lane.begun.descriptor, step.begin, data, lane.file.name)
        step.check(data)
        if number == lane.steps_hashed:  # and stays so, as nobody else has what comes next
            return self._hash(lane, data, buffer)
        return partial(lane.checked.__setitem__, number, (data, buffer))

    def _hash(self, lane: _Lane, data: memoryview, buffer: bytearray) -> Callable[[], object]:
        lane.digest.update(data)
        passed = lane.hashed_bytes + len(data) - lane.passed_bytes
        if passed >= PASSED_BYTES:
            lane.file.passed(lane.begun.descriptor, lane.passed_bytes, passed)
            lane.passed_bytes += passed
        self._advance(len(data))

        def let_know() -> None:
            lane.steps_hashed += 1
            lane.hashed_bytes += len(data)
            self._buffers.append(buffer)

        return let_know

    def _end(self, lane: _Lane) -> Callable[[], object]:
        try:
            lane.file.end(lane.begun.descriptor, lane.digest.hexdigest())
        finally:
            os.close(lane.begun.descriptor)

        def let_know() -> None:
            self._left -= 1

        return let_know
