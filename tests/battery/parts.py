"""The parts of the battery, each a function that a process of its own carries out."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

# How many faults of a command are tried at the most; of those where one takes long, fewer.
MOST = {"calibrated conversion": 60, "statistics": 30, "sweep": 130}
MOST_OF_OTHERS = 500


@dataclass(frozen=True)
class Part:
    """What a part of the battery found: rows of a *table* by its name, and promises that were *broken*."""

    table: str
    rows: tuple[tuple[str, ...], ...]
    num_tried: int
    broken: tuple[str, ...]
    seconds: float = 0.0


def faults_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.commands import commands_in
    from tests.battery.faults import inject
    from tests.battery.hub import pushing

    most = MOST.get(name, MOST_OF_OTHERS)
    if share < 1:
        most = min(most, round(600 * share))
    if name == "push":
        os.environ.pop("HF_HUB_OFFLINE")
        with pushing(top) as command:
            counts = inject(command, most=most, sockets=True)
    else:
        counts = inject(commands_in(top)[name], most=most)
    rows: list[tuple[str, ...]] = [(name, "calls", str(counts.num_calls))]
    rows += [(name, f"fault {fault}", state, str(count)) for (fault, state), count in counts.by_fault.items()]
    rows += [(name, f"call {call}", state, str(count)) for (call, state), count in counts.by_call.items()]
    return Part("faults", tuple(rows), counts.num_faults, tuple(counts.broken))


def power_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.commands import commands_in
    from tests.battery.power import lose_power

    random_ones = 2 if name in ("statistics", "sweep") else 8
    found = lose_power(commands_in(top)[name], random_ones=random_ones, run_again=max(2, round(24 * share)))
    states: Counter[str] = Counter()
    for (_, state), count in found.by_way.items():
        states[state] += count
    row = (name, found.num_calls, found.num_syncs, found.by_way.total())
    cells = (*row, *(states[state] for state in ("absent", "old", "whole")), found.num_run_again)
    return Part("power", (tuple(map(str, cells)),), found.by_way.total(), tuple(found.broken))


def interrupts_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.commands import commands_in
    from tests.battery.interrupts import OUTCOMES, interrupt

    moments = {"conversion": 45, "replacement": 15}.get(name, 9)
    found = interrupt(commands_in(top)[name], moments=max(3, round(moments * share)))
    cells = (name, *(str(found.by_outcome[outcome]) for outcome in OUTCOMES), f"{found.slowest:.2f} s")
    return Part("interrupts", (cells,), found.by_outcome.total(), tuple(found.broken))


def rivals_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.commands import commands_in
    from tests.battery.rivals import race

    command = commands_in(top)["conversion"]
    command = replace(command, arguments=tuple(one for one in command.arguments if one != "--force"))
    found = race(command, num_rounds=10, num_runs=20)
    said = ", ".join(f"{count} times exit code {code}" for code, count in sorted(found.by_exit_code.items()))
    return Part(
        "rivals", ((f"{found.num_rounds} times {found.num_runs} runs to one OUT", said),), 200, tuple(found.broken)
    )


def alike_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.rivals import write_alike

    found = write_alike(top, num_runs=max(1, round(10 * share)))
    rows = tuple(
        (
            f"`{mode}`, {counts.total()} runs, with 1 and with 8 jobs, each with a hash seed of its own",
            f"{len(counts)} sha256",
        )
        for mode, counts in found.outputs.items()
    )
    return Part("alike", rows, sum(counts.total() for counts in found.outputs.values()), tuple(found.broken))


def limits_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.limits import Limits

    outcomes = list(Limits(top).outcomes())
    rows = tuple((one.name, "the same bytes" if one.written else "refused, nothing left") for one in outcomes)
    return Part("limits", rows, len(outcomes), tuple(what for one in outcomes for what in one.broken))


def headers_of(top: Path, name: str, share: float) -> Part:
    from tests.battery.headers import OUTCOMES, SHOWN, compare_files, compare_indexes

    (top / "work").mkdir()
    compare, most = {"headers": (compare_files, 1_000_000), "indexes": (compare_indexes, 100_000)}[name]
    found = compare(round(most * share), 0, top / "work")
    cells = (name, f"{found.outcomes.total():,}", *(f"{found.outcomes[outcome]:,}" for outcome in OUTCOMES))
    broken = tuple(f"{name}: read otherwise than by the reference: {content!r}" for content in found.wrong[:SHOWN])
    return Part("headers", (cells,), found.outcomes.total(), broken)


_EVERY = ("conversion", "replacement", "conversion of .bin", "calibrated conversion", "statistics")
_ALL = (*_EVERY, "mask", "evaluate", "sweep", "report", "push")
PARTS: dict[str, tuple[Callable[[Path, str, float], Part], Sequence[str]]] = {
    "faults": (faults_of, _ALL),
    "power": (power_of, ("conversion", "replacement", "conversion of .bin", "statistics", "mask", "sweep", "report")),
    "interrupts": (interrupts_of, ("conversion", "replacement", "calibrated conversion", "sweep")),
    "rivals": (rivals_of, ("",)),
    "alike": (alike_of, ("",)),
    "limits": (limits_of, ("",)),
    "headers": (headers_of, ("headers", "indexes")),
}


def carry_out(task: tuple[str, str, Path, float]) -> Part:
    part, name, inputs, share = task
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s4convert-battery-") as directory:
        top = Path(directory)
        shutil.copytree(inputs, top / "inputs")
        os.chdir(top)
        found = PARTS[part][0](top, name, share)
        os.chdir("/")
    return replace(found, seconds=time.monotonic() - began)


def make_inputs(top: Path) -> None:
    from tests.battery import commands

    commands.make_inputs(top)
