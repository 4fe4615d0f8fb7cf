"""Faults by system call: every call that changes the disk fails, stops halfway, or is the last one.

Of each command, every such call meets every fault that it can have. What must hold each time:

- what stands at the output is nothing, or all of it (or, where it is to be replaced, the old one);
- no call touches the inputs;
- the exit code is a documented one, and stderr has no traceback; 0 only where the output is whole;
- unless it was killed, nothing is left beside the output, or a message says what;
- a run after it succeeds, writes the bytes of an undisturbed run, and leaves nothing beside them.
"""

from __future__ import annotations

import errno
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from s4convert.disk import UNFINISHED
from tests.battery.commands import Command
from tests.support.disk import snapshot
from tests.support.system_calls import Call, Decision, Ended, supervise

ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EINTR)
NETWORK_ERRORS = (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EINTR)
DOCUMENTED = {0, 2, 3, 4, 130}
HALVES = (Decision.HALF, Decision.KILL_HALFWAY)  # of a write
ABSENT, OLD, WHOLE, HALF = "absent", "old", "whole", "HALF"
Fault = Decision | int


def name_of(fault: Fault) -> str:
    return errno.errorcode[fault] if isinstance(fault, int) else fault.value


@dataclass
class Counts:
    """What became of the faults of one command."""

    command: str
    num_calls: int
    by_fault: Counter[tuple[str, str]] = field(default_factory=Counter)  # (fault, what stood at the output then)
    by_call: Counter[tuple[str, str]] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def num_faults(self) -> int:
        return self.by_fault.total()


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nothing disturbs, and what it calls."""

    state: str
    old: str | None
    calls: tuple[Call, ...]
    inputs: dict[str, tuple[int, ...]]


def faults_of(calls: Iterable[Call]) -> list[tuple[int, Fault]]:
    """Every fault that each of *calls* can have, with the call's number."""
    return [
        (number, fault)
        for number, call in enumerate(calls)
        for fault in (Decision.KILL, *errors_of(call), *(HALVES if call.can_be_short else ()))
    ]


def errors_of(call: Call) -> tuple[int, ...]:
    return NETWORK_ERRORS if call.name == "sendto" else ERRORS


def inject(command: Command, *, most: int | None = None, seed: int = 0, sockets: bool = False) -> Counts:
    """Run *command* once for each fault, or for a sample of *most* of them, and see what it leaves."""
    began = time.monotonic()
    command.import_everything()
    undisturbed = run_undisturbed(command, sockets=sockets)
    faults = faults_of(undisturbed.calls)
    if most is not None and len(faults) > most:
        faults = sorted(random.Random(seed).sample(faults, most), key=lambda fault: fault[0])
    counts = Counts(command.name, len(undisturbed.calls))
    for number, fault in faults:
        call, state, broken = _one(command, undisturbed, number, fault, sockets)
        counts.by_fault[name_of(fault), state] += 1
        counts.by_call[call.name, state] += 1
        where = f"{command.name}: {name_of(fault)} at {number}, {call.name} {' '.join(call.paths)}"
        counts.broken += [f"{where}: {what}" for what in broken]
    counts.seconds = time.monotonic() - began
    return counts


def run_undisturbed(command: Command, *, sockets: bool = False) -> Undisturbed:
    """Run it with nothing in its way; AssertionError where it fails."""
    command.set_up()
    old = command.state()
    before = snapshot(command.inputs)
    ended = supervise(command.run, command.top, first=command.redirect, sockets=sockets)
    state = command.state()
    assert ended.exit_code == 0 and state is not None, command.stderr
    assert not command.left_beside(), command.left_beside()
    assert snapshot(command.inputs) == before
    return Undisturbed(state, old, ended.called, before)


def _one(
    command: Command, undisturbed: Undisturbed, number: int, fault: Fault, sockets: bool
) -> tuple[Call, str, list[str]]:
    """(the call that met the fault, what stood at the output then, which promises were broken)."""
    command.set_up()
    met: list[Call] = []

    def decide(index: int, call: Call) -> Fault:
        # Threads may change the order: then the fault is the next call's that can have it.
        if met or index < number or (fault in HALVES and not call.can_be_short):
            return Decision.GO_ON
        met.append(call)
        return fault

    ended = supervise(command.run, command.top, decide, first=command.redirect, sockets=sockets)
    left = command.left_beside()
    state = name_of_state(command, undisturbed)
    broken = list(_broken_by(command, undisturbed, ended, state, left))
    if not met:
        broken.append("was not met")
    broken += broken_by_the_next_run(command, undisturbed, sockets=sockets)
    if snapshot(command.inputs) != undisturbed.inputs:
        broken.append("the inputs changed")
    return met[0] if met else undisturbed.calls[number], state, broken


def broken_by_the_next_run(command: Command, undisturbed: Undisturbed, *, sockets: bool = False) -> Iterator[str]:
    """Run *command* again, on whatever stands there: it writes the bytes of an undisturbed run, and nothing beside."""
    expected = 2 if command.refuses and name_of_state(command, undisturbed) == WHOLE else 0
    again = supervise(command.run, command.top, first=command.redirect, sockets=sockets)
    if again.exit_code != expected:
        yield f"the next run ended with {again.exit_code}: {command.stderr.strip()}"
    elif command.state() != undisturbed.state:
        yield "the next run wrote other bytes"
    # A kill leaves an unfinished file under a name that no other run takes. What is refused clears nothing up.
    if expected == 0 and (still := [name for name in command.left_beside() if not name.startswith(UNFINISHED)]):
        yield f"after the next run there is {still}"


def name_of_state(command: Command, undisturbed: Undisturbed) -> str:
    """What stands at the command's output, beside what an undisturbed run leaves."""
    try:
        state = command.state()
    except ValueError:
        return HALF
    if state == undisturbed.state:
        return WHOLE
    if state is None:
        return ABSENT
    return OLD if state == undisturbed.old else HALF


def _broken_by(command: Command, undisturbed: Undisturbed, ended: Ended, state: str, left: list[str]) -> Iterator[str]:
    touched = [call for call in ended.called if any(path.startswith(f"{command.inputs}/") for path in call.paths)]
    if touched:
        yield f"touched the inputs: {touched[0]}"
    if state == HALF:
        yield "the output is half-written"
    if ended.exit_code == -signal.SIGKILL:
        if state == ABSENT and undisturbed.old is not None and not any(name.endswith("replaced") for name in left):
            yield "the old output is lost"
        return
    stderr = command.stderr
    if state == ABSENT and undisturbed.old is not None:
        yield "the old output is gone"
    if ended.exit_code not in DOCUMENTED:
        yield f"exit code {ended.exit_code}: {stderr.strip()[-300:]}"
    if "Traceback" in stderr:
        yield f"a traceback: {stderr.strip()[-300:]}"
    if ended.exit_code == 0 and state != WHOLE:
        yield f"exit code 0, and the output is {state}"
    if command.output == "out" and state == WHOLE and "OUT is as it was" in stderr:
        yield f"denies that the output stands: {stderr.strip()[-300:]}"
    unsaid = [name for name in left if name not in stderr]
    if unsaid:
        yield f"left {unsaid} without a word: {stderr.strip()[-300:]}"
