"""The command line as the tests run it: in this process, where speed matters, or in one of its own."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from s4convert import cli

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "s4convert")
ERROR = "s4convert: error: "
# The loggers whose levels the command sets, or the Hub's client when the command imports it.
LEVELS_SET = ("s4convert", "huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code and what it wrote."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The error's only line, without its beginning; every line before it is a message, none a traceback."""
        *messages, last = self.stderr.splitlines()
        assert last.startswith(ERROR), self.stderr
        for message in messages:
            assert message.startswith("s4convert: "), self.stderr
            assert not message.startswith(ERROR), self.stderr
        return last.removeprefix(ERROR)


def run_here(*arguments: object, first: Callable[[], object] = lambda: None) -> Outcome:
    """Run ``main()`` in this process; what it sets up for the whole process is put back afterwards.

    *first* is called before it, when its stdout and stderr are in place.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        _put_back(),
        mock.patch.object(sys, "argv", ["s4convert", *map(str, arguments)]),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        first()
        try:
            cli.main()
        except SystemExit as end:
            exit_code = int(end.code or 0)
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue())


@contextmanager
def _put_back() -> Iterator[None]:
    """Give the block a root logger without handlers; put back logging, signal handlers and environment after it."""
    root = logging.getLogger()  # pytest's handlers would keep the command from setting up its messages
    levels = {name: logging.getLogger(name).level for name in (None, *LEVELS_SET)}
    handlers = {logger: logger.handlers[:] for logger in _loggers()}
    on_signal = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    root.handlers.clear()
    try:
        with mock.patch.dict(os.environ), mock.patch.object(logging, "raiseExceptions", logging.raiseExceptions):
            yield
    finally:
        for logger in _loggers():  # what a library set up meanwhile writes to the command's stderr
            logger.handlers[:] = handlers.get(logger, [])
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        for number, handler in on_signal.items():
            signal.signal(number, handler)


def _loggers() -> list[logging.Logger]:
    known = logging.getLogger().manager.loggerDict.values()
    return [logging.getLogger(), *(logger for logger in known if isinstance(logger, logging.Logger))]


def start(
    *arguments: object, environment: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND
) -> subprocess.Popen[str]:
    """Start the command in a process of its own, offline unless an *environment* says otherwise."""
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"} if environment is None else environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome_of(process: subprocess.Popen[str]) -> Outcome:
    """Wait for *process*; its exit code is minus the signal where one killed it."""
    stdout, stderr = process.communicate(timeout=120)
    return Outcome(process.returncode, stdout, stderr)


def run(*arguments: object, environment: Mapping[str, str] | None = None, command: Sequence[str] = COMMAND) -> Outcome:
    """Run the command in a process of its own, as :func:`start` does."""
    return outcome_of(start(*arguments, environment=environment, command=command))
