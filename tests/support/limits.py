"""Limits of memory and time for a block, so that an attack on either fails its test and not the machine."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

GIB = 1 << 30


@contextmanager
def limited(*, more_bytes: int, seconds: float) -> Iterator[None]:
    """Let the block take *more_bytes* of address space than this process has now, and *seconds*.

    What asks for more memory gets none (MemoryError, or its library's error); after the time, the test fails, whatever
    errors the block catches.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])

    def end(signal_number: int, frame: object) -> NoReturn:
        pytest.fail(f"took longer than {seconds} s")

    handler = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
