"""Many runs to one OUT, and many runs that are to write the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from s4convert import verify_conversion
from tests.battery.commands import CALIBRATION, Command, of_directory
from tests.support.command_line import COMMAND
from tests.support.disk import hidden_siblings


@dataclass
class Rivals:
    """How often each number of winners came, and what the others said."""

    num_rounds: int = 0
    num_runs: int = 0
    by_exit_code: Counter[int] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def race(command: Command, *, num_rounds: int, num_runs: int) -> Rivals:
    """Start *num_runs* of *command* at one moment, *num_rounds* times; it does not replace what it finds."""
    command.import_everything()
    expected = command.state()
    found = Rivals(num_rounds, num_runs)
    for number in range(num_rounds):
        command.set_up()
        codes = list(_at_once(command, num_runs))
        found.by_exit_code.update(codes)
        if codes.count(0) != 1:
            found.broken.append(f"round {number}: {codes.count(0)} winners")
        if not set(codes) <= {0, 2, 3}:
            found.broken.append(f"round {number}: exit codes {sorted(set(codes))}")
        out = command.work / command.output
        if command.state() != expected:
            found.broken.append(f"round {number}: the winner wrote other bytes")
        verify_conversion(command.inputs / "small", out, check_behaviour=False)
        if left := hidden_siblings(out):
            found.broken.append(f"round {number}: left {left}")
    return found


def _at_once(command: Command, num_runs: int) -> Iterator[int]:
    gun = os.pipe()
    children = []
    for _ in range(num_runs):
        child = os.fork()
        if child == 0:
            exit_code = 70
            try:
                command.redirect()
                os.read(gun[0], 1)
                command.run()
            except SystemExit as end:
                exit_code = int(end.code or 0)
            finally:
                os._exit(exit_code)
        children.append(child)
    os.write(gun[1], b"!" * num_runs)
    for child in children:
        yield os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for descriptor in gun:
        os.close(descriptor)


@dataclass
class Alike:
    """How many runs of each conversion there were, and how many different outputs they wrote."""

    outputs: dict[str, Counter[str]] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        return [f"{name}: {len(found)} different outputs" for name, found in self.outputs.items() if len(found) != 1]


def write_alike(top: Path, *, num_runs: int) -> Alike:
    """Convert with 1 and with 8 jobs, *num_runs* times each, each process with a hash seed of its own.

    What is fitted to data is converted twice each: it takes long.
    """
    chance, found = random.Random(0), Alike()
    conversions = {
        "scale": ("inputs/small", "work/out", "--mask", "inputs/mask.json"),
        "least-squares": ("inputs/mini", "work/out", "--mask", "inputs/mini-mask.json", *CALIBRATION),
    }
    for name, arguments in conversions.items():
        found.outputs[name] = Counter()
        for jobs in ("1", "8") * (num_runs if name == "scale" else 2):
            shutil.rmtree(top / "work", ignore_errors=True)
            (top / "work").mkdir()
            subprocess.run(
                [*COMMAND, *arguments, "--no-verify", "-q", "--jobs", jobs],
                cwd=top,
                env=os.environ | {"PYTHONHASHSEED": str(chance.randrange(1 << 32))},
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            found.outputs[name][str(of_directory(top / "work" / "out"))] += 1
    return found
