"""The command line as the tests run it: in this process, where speed matters, or in one of its own."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from s4convert import cli

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "s4convert")
ERROR = "s4convert: error: "


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


def run_here(*arguments: object) -> Outcome:
    """Run ``main()`` in this process; logging and signal handlers are put back afterwards."""
    stdout, stderr = io.StringIO(), io.StringIO()
    root, package = logging.getLogger(), logging.getLogger("s4convert")
    levels, handlers, on_terminate = (root.level, package.level), root.handlers[:], signal.getsignal(signal.SIGTERM)
    root.handlers.clear()  # pytest's own would keep the command from setting up its messages
    try:
        with (
            mock.patch.object(sys, "argv", ["s4convert", *map(str, arguments)]),
            redirect_stdout(stdout),
            redirect_stderr(stderr),
        ):
            try:
                cli.main()
            except SystemExit as end:
                exit_code = int(end.code or 0)
    finally:
        root.handlers[:] = handlers
        root.setLevel(levels[0])
        package.setLevel(levels[1])
        signal.signal(signal.SIGTERM, on_terminate)
    return Outcome(exit_code, stdout.getvalue(), stderr.getvalue())


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
