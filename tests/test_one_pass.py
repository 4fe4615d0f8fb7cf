"""A pass over files: what is checked and hashed is what stands in them, whoever writes it and whenever."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from s4convert.errors import StorageError
from s4convert.one_pass import Begun, Part, Step, go_over

PART_BYTES, STEP_BYTES = 700, 1000


class Random:
    """A file of *size* random bytes; *log* tells what happened to it."""

    def __init__(self, path: Path, size: int, *, missing: int = 0) -> None:
        self.path, self.size, self.name, self.missing = path, size, path.name, missing
        self.content = random.Random(size).randbytes(size)
        self.log: list[str] = []
        self.sha256 = ""

    def begin(self) -> Begun:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.truncate(descriptor, self.size - self.missing)
        return Begun(descriptor, self.size, self.parts(), self.steps())

    def parts(self) -> Iterator[Part]:
        for begin in range(0, self.size, PART_BYTES):
            yield Part(begin, partial(self.write, begin))

    def steps(self) -> Iterator[Step]:
        for begin in range(0, self.size, STEP_BYTES):
            yield Step(begin, min(STEP_BYTES, self.size - begin), partial(self.check, begin))

    def write(self, begin: int, descriptor: int) -> None:
        time.sleep(random.random() * 1e-3)  # parts end in any order
        if not self.missing:
            os.pwrite(descriptor, self.content[begin : begin + PART_BYTES], begin)
        self.log.append("part")

    def check(self, begin: int, found: memoryview) -> None:
        assert found == self.content[begin : begin + STEP_BYTES]
        self.log.append("step")

    def written(self, descriptor: int) -> None:
        assert self.log.count("part") == -(-self.size // PART_BYTES)
        assert self.log.count("step") < max(1, -(-self.size // STEP_BYTES))
        self.log.append("written")

    def passed(self, descriptor: int, begin: int, size: int) -> None:
        raise AssertionError("it is too small for that")

    def end(self, descriptor: int, sha256: str) -> None:
        assert self.log.count("step") == -(-self.size // STEP_BYTES)
        self.sha256 = sha256


@pytest.mark.parametrize("jobs", [1, 2, 7])
def test_every_byte_is_checked_when_it_is_written_and_hashed_in_its_turn(tmp_path: Path, jobs: int) -> None:
    files = [Random(tmp_path / str(size), size) for size in (0, 1, STEP_BYTES, 30 * STEP_BYTES + 1, 9 * STEP_BYTES - 1)]
    done: list[int] = []
    go_over(files, jobs=jobs, advance=done.append)
    for file in files:
        assert file.sha256 == hashlib.sha256(file.content).hexdigest()
        assert file.log.count("written") == 1
        assert file.path.read_bytes() == file.content
    assert sum(done) == sum(file.size for file in files)


class Failing(Random):
    def check(self, begin: int, found: memoryview) -> None:
        if begin >= 5 * STEP_BYTES:
            raise KeyboardInterrupt


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_failure_ends_all_threads_and_closes_all_files(tmp_path: Path, jobs: int) -> None:
    before = set(os.listdir("/proc/self/fd")), threading.active_count()
    files = [Failing(tmp_path / "bad", 40 * STEP_BYTES), *(Random(tmp_path / str(n), 5000 + n) for n in range(3))]
    with pytest.raises(KeyboardInterrupt):
        go_over(files, jobs=jobs, advance=lambda _: None)
    assert (set(os.listdir("/proc/self/fd")), threading.active_count()) == before
    assert files[0].sha256 == ""


def test_a_file_that_ends_early_is_told(tmp_path: Path) -> None:
    file = Random(tmp_path / "short", 0, missing=0)
    file.size, file.missing, file.content = 3000, 1, bytes(3000)
    with pytest.raises(StorageError, match="short: became shorter while it was read"):
        go_over([file], jobs=2, advance=lambda _: None)
