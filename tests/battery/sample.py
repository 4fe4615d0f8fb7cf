"""A sample of the battery that takes seconds: ``python -m tests.battery.sample`` prints what it found, as JSON.

It is a process of its own because it forks, which one with threads must not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.battery.commands import commands_in, make_small_inputs
from tests.battery.faults import inject
from tests.battery.power import lose_power

NUM_FAULTS = 20  # of each command


def main() -> None:
    """Faults of a conversion and of one that replaces another, and power that goes."""
    with tempfile.TemporaryDirectory() as directory:
        top = Path(directory)
        make_small_inputs(top)
        commands = commands_in(top)
        injected = [inject(commands[name], most=NUM_FAULTS) for name in ("conversion", "replacement")]
        lost = lose_power(commands["replacement"], random_ones=2, run_again=3)
    json.dump(
        {
            "faults": sum(counts.num_faults for counts in injected),
            "losses of power": lost.by_way.total(),
            "states": sorted({state for counts in injected for _, state in counts.by_fault}),
            "broken": [what for found in (*injected, lost) for what in found.broken],
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
