"""Whole processes, measured from outside: seconds, peak memory (VmHWM) and bytes written, as the kernel tells them."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Run:
    """One run; *processor_seconds* are user and system time, *written_bytes* what was sent to the disk."""

    seconds: float
    processor_seconds: float
    peak_bytes: int
    written_bytes: int

    def then(self, other: Run) -> Run:
        """Both, one after the other."""
        return Run(
            self.seconds + other.seconds,
            self.processor_seconds + other.processor_seconds,
            max(self.peak_bytes, other.peak_bytes),
            self.written_bytes + other.written_bytes,
        )


def run(*commands: Sequence[str]) -> Run:
    """The *commands*, one after the other; subprocess.CalledProcessError where one fails."""
    total = Run(0, 0, 0, 0)
    for command in commands:
        total = total.then(_run(command))
    return total


def _run(command: Sequence[str]) -> Run:
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        figures = _watch(process, start)
        if process.returncode:
            errors.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, stderr=errors.read())
    return figures


def _watch(process: subprocess.Popen[bytes], start: float) -> Run:
    """The figures of *process* when it has ended."""
    peak = 0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak = max(peak, 1024 * _number(process.pid, "status", "VmHWM"))
        time.sleep(_POLL_SECONDS)
    seconds = time.perf_counter() - start
    written = _number(process.pid, "io", "write_bytes")  # it is told until the process is waited for
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Run(seconds, usage.ru_utime + usage.ru_stime, peak, written)


def _number(process: int, file: str, name: str) -> int:
    try:
        lines = Path(f"/proc/{process}/{file}").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
