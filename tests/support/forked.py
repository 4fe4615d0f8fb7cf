"""Conversions in forked children: killed, or many at once.

``python -m tests.support.forked`` takes a task as JSON on stdin, and the names and arguments of functions below, and
prints what they saw as JSON. It is a process of its own because it forks, which one with threads must not.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from s4convert.errors import S4ConvertError
from s4convert.jobs.convert import convert
from tests.support import seams
from tests.support.disk import digests

CHANGE_THE_DISK = ("mkdir", "truncate", "copy_file_range", "pwrite", "fsync", "rename", "unlink", "rmdir")
SOME_TIME = 60.0  # seconds, for what takes far less


@dataclass(frozen=True)
class Task:
    """A conversion; *options* are those of ``convert``."""

    source: Path
    out: Path
    mask: Path
    options: dict[str, Any]

    def carry_out(self, **options: Any) -> None:
        convert(self.source, self.out, self.mask, **(self.options | options))


@dataclass(frozen=True)
class Child:
    """A forked child; *messages* is where the message of its error comes from."""

    process: int
    messages: int

    def end(self) -> dict[str, Any]:
        """Wait for it; its exit code (minus the signal where one killed it), and its error."""
        with os.fdopen(self.messages) as pipe:
            error = pipe.read()
        return {"exit_code": os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1]), "error": error}


def fork(work: Callable[[], None]) -> Child:
    """A child that does *work*."""
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, threads
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        exit_code, error = 70, "nothing was said"
        try:
            work()
            exit_code, error = 0, ""
        except S4ConvertError as refused:
            exit_code, error = refused.exit_code, str(refused)
        except BaseException as fault:
            error = repr(fault)
        finally:
            os.write(write, error.encode())
            os._exit(exit_code)
    os.close(write)
    return Child(process, read)


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


def kill_after(seconds: float, child: Child) -> dict[str, Any]:
    """Kill *child*, if it has not ended by then."""
    time.sleep(seconds)
    os.kill(child.process, signal.SIGKILL)  # it is there until it is waited for
    return child.end()


def what_stands(out: Path) -> dict[str, Any]:
    return {
        "out": digests(out) if out.exists() else None,
        "siblings": {path.name: digests(path) for path in sorted(out.parent.glob(f".{out.name}.*"))},
    }


def killed_at_moments(task: Task, *, moments: int) -> list[dict[str, Any]]:
    """Kill the conversion at *moments* spread evenly over its run, and run it again, without ``force``."""
    began = time.monotonic()
    undisturbed = fork(task.carry_out).end()
    duration = time.monotonic() - began
    assert undisturbed["exit_code"] == 0, undisturbed
    shutil.rmtree(task.out)
    entries = []
    for moment in range(moments):
        ended = kill_after(duration * moment / moments, fork(task.carry_out))
        left = what_stands(task.out)
        again = fork(task.carry_out).end()
        entries.append({"killed": ended, "left": left, "again": again, "left_again": what_stands(task.out)})
        shutil.rmtree(task.out)
    return entries


def killed_behind_the_commit(task: Task, *, old: str | None = None) -> list[dict[str, Any]]:
    """Kill the conversion at each step after OUT stands, and run it again, without ``force``.

    With *old*, a copy of that directory stands at OUT before and is replaced, and what stands there is removed before
    the conversion is run again.
    """

    def killed(call: int) -> None:
        rename = os.rename

        def rename_and_count(*args: Any, **kwargs: Any) -> None:
            rename(*args, **kwargs)
            if Path(args[1]) == task.out:
                kill_before(call)

        os.rename = rename_and_count
        task.carry_out(force=old is not None)

    entries = []
    for call in itertools.count():
        if old is not None:
            shutil.copytree(old, task.out)
        ended = fork(lambda call=call: killed(call)).end()
        left = what_stands(task.out)
        if old is not None:
            shutil.rmtree(task.out)
        again = fork(task.carry_out).end()
        entries.append({"killed": ended, "left": left, "again": again, "left_again": what_stands(task.out)})
        shutil.rmtree(task.out)
        if ended["exit_code"] != -signal.SIGKILL:
            return entries
    raise AssertionError


def many_at_once(task: Task, *, num_children: int) -> list[dict[str, Any]]:
    """Start *num_children* at one moment; who gets as far as writing waits until the others have ended."""
    starting_gun, others_ended = os.pipe(), os.pipe()

    def wait_for_the_others() -> None:
        os.read(others_ended[0], 1)

    def race() -> None:
        os.read(starting_gun[0], 1)
        with pytest.MonkeyPatch.context() as patch:
            seams.before_staging(patch, wait_for_the_others)
            task.carry_out()

    children = [fork(race) for _ in range(num_children)]
    os.write(starting_gun[1], b"!" * num_children)
    deadline = time.monotonic() + SOME_TIME
    while sum(has_ended(child) for child in children) < num_children - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.write(others_ended[1], b"!" * num_children)
    return [child.end() for child in children]


def has_ended(child: Child) -> bool:
    return os.waitid(os.P_PID, child.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def import_everything(task: Task) -> None:
    """By a conversion to a directory that goes away again."""
    scratch = task.out.with_name(f"imports-of-{task.out.name}")
    Task(task.source, scratch, task.mask, task.options).carry_out()
    shutil.rmtree(scratch)


def main(task: dict[str, Any], what: dict[str, dict[str, Any]]) -> None:
    tqdm.monitor_interval = 0  # it would start a thread
    paths = {name: Path(task[name]) for name in ("source", "out", "mask")}
    whole = Task(**paths, options={"check_behaviour": False} | task["options"])
    import_everything(whole)
    functions = (killed_at_moments, killed_behind_the_commit, many_at_once)
    by_name: dict[str, Callable[..., Any]] = {function.__name__: function for function in functions}
    json.dump({name: by_name[name](whole, **arguments) for name, arguments in what.items()}, sys.stdout)


if __name__ == "__main__":
    main(**json.load(sys.stdin))
