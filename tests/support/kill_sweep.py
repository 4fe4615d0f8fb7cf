"""Kills a conversion before each of its calls that change the disk, in turn, and tells what is left.

``python -m tests.support.kill_sweep IN OUT MASK [OLD]`` prints a JSON list with one entry per call: what stands at OUT
and in its hidden siblings after the kill, and after running the conversion again. With OLD, a copy of that
directory stands at OUT before, and both conversions are told to replace it.

This is a process of its own because it forks, which one with threads must not.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s4convert.jobs.convert import convert
from tests.support.disk import digests

CHANGE_THE_DISK = ("mkdir", "truncate", "copy_file_range", "pwrite", "fsync", "rename", "unlink", "rmdir")


def kill_before(call: int) -> None:
    """Let this process be killed at once, instead of making its *call*-th call that changes the disk."""
    calls = itertools.count()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in CHANGE_THE_DISK:
        setattr(os, name, counted(getattr(os, name)))


def convert_in_a_child(source: Path, out: Path, mask: Path, *, force: bool, killed_at: int | None) -> int:
    """The exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        exit_code = 1
        try:
            if killed_at is not None:
                kill_before(killed_at)
            convert(source, out, mask, check_behaviour=False, force=force, jobs=2)
            exit_code = 0
        finally:
            os._exit(exit_code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def what_stands(out: Path) -> dict[str, Any]:
    return {
        "out": digests(out) if out.exists() else None,
        "siblings": {path.name: digests(path) for path in sorted(out.parent.glob(f".{out.name}.*"))},
    }


def main(source: Path, out: Path, mask: Path, old: Path | None = None) -> None:
    entries = []
    for call in itertools.count():
        if old is not None:
            shutil.copytree(old, out)
        killed = convert_in_a_child(source, out, mask, force=old is not None, killed_at=call)
        left = what_stands(out)
        again = convert_in_a_child(source, out, mask, force=True, killed_at=None)
        entries.append({"exit_code": killed, "left": left, "exit_code_again": again, "left_again": what_stands(out)})
        shutil.rmtree(out)
        if killed != -signal.SIGKILL:
            break
    json.dump(entries, sys.stdout)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
