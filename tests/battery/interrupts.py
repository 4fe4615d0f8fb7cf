"""Ctrl-C, SIGTERM and a terminal that goes away, at moments spread over a run, in a process of its own on a terminal.

The command ends with 130 in little time, says so on a line of its own, and leaves nothing; or it was about to end, and
all is there. Before Python has read the command, a signal ends it as it ends any process.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.battery.commands import Command
from tests.battery.faults import WHOLE, Undisturbed, name_of_state, run_undisturbed
from tests.support.command_line import COMMAND

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BEFORE, INTERRUPTED, DONE = OUTCOMES = ("ended before it began", "interrupted: 130", "had done its work: 0")
SLOW = 2.0  # seconds from the signal to the end, of which a step of a busy machine may take one
_LAST = re.compile(rb"(?:^|[\r\n])s4convert: error: interrupted[^\r\n]*\r?\n(?:\x1b\[[0-9;]*[A-Za-z])*$")


@dataclass
class Interrupts:
    """What a command did when it was interrupted."""

    command: str
    by_outcome: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    broken: list[str] = field(default_factory=list)


def interrupt(command: Command, *, moments: int) -> Interrupts:
    """Interrupt *command* at *moments* of its run, by each signal in turn."""
    undisturbed = _undisturbed(command)
    began = time.monotonic()
    _start(command).communicate(timeout=120)
    duration = time.monotonic() - began
    found = Interrupts(command.name)
    chance = random.Random(0)
    for number in range(moments):
        moment = duration * (number + chance.random()) / moments
        _one(command, undisturbed, found, SIGNALS[number % len(SIGNALS)], moment)
    return found


def _undisturbed(command: Command) -> Undisturbed:
    command.import_everything()
    return run_undisturbed(command)


def _one(command: Command, undisturbed: Undisturbed, found: Interrupts, number: signal.Signals, moment: float) -> None:
    command.set_up()
    ours, theirs = os.openpty()
    process = _start(command, stderr=theirs)
    os.close(theirs)
    time.sleep(moment)
    process.send_signal(number)
    sent = time.monotonic()
    said = _read(ours)
    exit_code = process.wait(timeout=120)
    took = time.monotonic() - sent
    assert process.stdout is not None
    process.stdout.close()
    state, left = name_of_state(command, undisturbed), command.left_beside()
    where = f"{command.name}: {number.name} after {moment:.3f} s"
    # Where Python itself was starting, it ends with 1, and says so; the file that it was at may have our name.
    if exit_code in (-number, 1) and (b"s4convert" not in said or b"init_import_site" in said):
        outcome = BEFORE
    elif exit_code == 130:
        outcome = INTERRUPTED
        found.slowest = max(found.slowest, took)
        if took > SLOW:
            found.broken.append(f"{where}: took {took:.1f} s to end")
        if not _LAST.search(said):
            found.broken.append(f"{where}: the terminal ends with {said[-200:]!r}")
        if state == WHOLE:
            found.broken.append(f"{where}: the output is there all the same")
    elif exit_code == 0 and state == WHOLE:
        outcome = DONE
    else:
        outcome = f"exit code {exit_code}"
        found.broken.append(f"{where}: exit code {exit_code}, the output is {state}: {said[-300:]!r}")
    found.by_outcome[outcome] += 1
    if left:
        found.broken.append(f"{where}: left {left}")
    if state != WHOLE and command.state() != undisturbed.old:
        found.broken.append(f"{where}: the output is {state}")


def _start(command: Command, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *command.arguments],
        cwd=command.top,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
    )


def _read(terminal: int) -> bytes:
    """All that is said on the *terminal*, until nobody holds its other end."""
    said = b""
    with contextlib.suppress(OSError):  # EIO: it is closed
        while select.select([terminal], [], [], 120)[0] and (more := os.read(terminal, 65536)):
            said += more
    os.close(terminal)
    return said
