"""``python -m tests.battery``: all of the battery, or some of its parts; prints the tables of docs/reliability.md.

``--write`` puts them into that page. ``--share 0.1`` takes a tenth of the faults and moments, to try it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.battery.parts import PARTS, Part, carry_out, make_inputs

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


# --- the tables ------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def faults_tables(parts: Sequence[Part]) -> str:
    """By command and fault, and by call and outcome."""
    rows = [row for part in parts for row in part.rows]
    commands = list(dict.fromkeys(row[0] for row in rows))
    kinds = {
        "SIGKILL": ("SIGKILL", "SIGKILL halfway"),
        "ENOSPC": ("ENOSPC",),
        "EIO": ("EIO",),
        "EDQUOT": ("EDQUOT",),
        "EROFS": ("EROFS",),
        "EINTR": ("EINTR",),
        "short write": ("writes half",),
        "network": ("ECONNRESET", "EPIPE", "ETIMEDOUT"),
    }
    states = ("absent", "old", "whole")
    by_command = []
    for name in commands:
        mine = [row for row in rows if row[0] == name]
        faults = [row for row in mine if row[1].startswith("fault ")]
        counts = [
            sum(int(row[3]) for row in faults if row[1].removeprefix("fault ") in of_kind) for of_kind in kinds.values()
        ]
        left = [sum(int(row[3]) for row in faults if row[2] == state) for state in states]
        calls = next(row[2] for row in mine if row[1] == "calls")
        by_command.append((name, calls, *counts, sum(counts), *left))
    total = ["all", *(sum(int(row[at]) for row in by_command) for at in range(1, len(by_command[0])))]
    calls_of: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row[1].startswith("call "):
            calls_of[row[1].removeprefix("call "), row[2]] += int(row[3])
    names = sorted({call for call, _ in calls_of}, key=lambda call: -sum(calls_of[call, state] for state in states))
    by_call = [
        (f"`{call}`", sum(calls_of[call, state] for state in states), *(calls_of[call, state] for state in states))
        for call in names
    ]
    head = ("command", "calls", *kinds, "faults", *states)
    return f"{table(head, [*by_command, total])}\n\n{table(('call', 'faults', *states), by_call)}"


def tables_of(parts: Sequence[Part]) -> dict[str, str]:
    """Every table by the name of its place in the page."""
    from tests.battery.headers import OUTCOMES as HEADER_OUTCOMES
    from tests.battery.interrupts import OUTCOMES

    heads = {
        "power": ("command", "calls", "fsyncs", "losses of power", "absent", "old", "whole", "run again"),
        "interrupts": ("command", *OUTCOMES, "slowest"),
        "rivals": ("what ran", "outcome"),
        "alike": ("what ran", "outcome"),
        "limits": ("limit", "outcome"),
        "headers": ("mutated", "number", *(f"{reference}, {ours}" for reference, ours in HEADER_OUTCOMES)),
    }
    found = {}
    for name in ("faults", *heads):
        of_table = [part for part in parts if part.table == name]
        if of_table and name == "faults":
            found[name] = faults_tables(of_table)
        elif of_table:
            found[name] = table(heads[name], [row for part in of_table for row in part.rows])
    return found


def write_into(page: str, tables: dict[str, str]) -> str:
    """*page* with each table between its marks."""
    for name, text in tables.items():
        begin, end = f"<!-- battery: {name} -->", "<!-- end -->"
        before, mark, rest = page.partition(begin)
        assert mark, f"{PAGE} has no place for {name}"
        page = f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.battery", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}  [default: all]")
    parser.add_argument("--command", help="of one command only")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help=f"write the tables into {PAGE.name}")
    given = parser.parse_args()
    os.environ |= ENVIRONMENT
    began = time.monotonic()
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(prefix="s4convert-battery-") as directory:
        tasks = [
            (part, name, Path(directory) / "inputs", given.share)
            for part in given.parts or PARTS
            for name in PARTS[part][1]
            if given.command in (None, name)
        ]
        # A process for each: it imports what its command needs, and then forks, so it must have no thread.
        with ProcessPoolExecutor(given.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
            pool.submit(make_inputs, Path(directory)).result()
            for task, part in zip(tasks, pool.map(carry_out, tasks), strict=True):
                parts.append(part)
                said = f"{task[0]} {task[1]}".strip()
                print(
                    f"{said}: {part.num_tried} tried, {len(part.broken)} broken, {part.seconds:.0f} s", file=sys.stderr
                )
                for what in part.broken:
                    print(f"  BROKEN {what}", file=sys.stderr)
    tables = tables_of(parts)
    for name, text in tables.items():
        print(f"\n{name}\n\n{text}")
    broken = sum(len(part.broken) for part in parts)
    minutes = (time.monotonic() - began) / 60
    print(f"\n{sum(part.num_tried for part in parts):,} tried, {broken} promises broken, in {minutes:.0f} minutes")
    if given.write:
        PAGE.write_text(write_into(PAGE.read_text(), tables))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
