"""What the tests ask ``tests.support.forked`` for, and what they want to see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.command_line import ROOT
from tests.support.warm_python import NO_THREADS

DONE = {"exit_code": 0, "error": ""}
KILLED = {"exit_code": -signal.SIGKILL, "error": ""}


def in_forked_children(
    source: Path,
    out: Path,
    mask: Path,
    what: dict[str, dict[str, Any]],
    python: str = sys.executable,  # forks of a small process are faster than those of a warm one
    **options: Any,
) -> list[list[dict[str, Any]]]:
    """What functions of ``tests.support.forked`` see of this conversion; *what* has their names and arguments."""
    task = {"source": str(source), "out": str(out), "mask": str(mask), "options": options}
    finished = subprocess.run(
        [python, "-m", "tests.support.forked"],
        input=json.dumps({"task": task, "what": what}),
        cwd=ROOT,
        env=os.environ | NO_THREADS,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return list(json.loads(finished.stdout).values())


def assert_nothing_or_all_was_left(entries: list[dict[str, Any]], expected: dict[str, str]) -> None:
    """A kill leaves no OUT, and the next run makes it; or else all of it."""
    unfinished = [entry for entry in entries if entry["left"]["out"] is None]
    for entry in unfinished:
        assert entry["killed"] == KILLED
        assert entry["again"] == DONE
        assert entry["left_again"] == {"out": expected, "siblings": {}}
    for entry in entries:
        if entry not in unfinished:
            assert_all_was_left(entry, expected)
    assert len(unfinished) >= len(entries) / 4  # on a busy machine, the run that the moments were taken from was slow


def assert_all_was_left(entry: dict[str, Any], expected: dict[str, str]) -> None:
    """OUT stands after the kill, so the next run is refused; it clears up nevertheless."""
    assert entry["left"]["out"] == expected
    assert entry["again"]["exit_code"] == 2
    assert "is not empty; choose another OUT, or replace it" in entry["again"]["error"]
    assert entry["left_again"] == {"out": expected, "siblings": {}}
