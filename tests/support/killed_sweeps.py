"""A sweep in forked children, killed at one step after another, each going on from what the one before has left.

``python -m tests.support.killed_sweeps`` takes its source, the directory of its results, its options, and the calls
that change the disk to be killed before, as JSON on stdin; it prints the exit codes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s4convert import sweep
from tests.support.forked import fork, kill_before


def main(source: str, out: str, options: dict[str, Any], calls: list[int]) -> None:
    tqdm.monitor_interval = 0  # it would start a thread
    scratch = Path(f"{out}-imports")
    sweep(source, scratch, **options)  # imports everything
    shutil.rmtree(scratch)

    def killed(call: int) -> None:
        kill_before(call)
        sweep(source, out, **options)

    json.dump([fork(lambda call=call: killed(call)).end()["exit_code"] for call in calls], sys.stdout)


if __name__ == "__main__":
    main(**json.load(sys.stdin))
