"""Workers of a Ray cluster measure what one process measures, and none of it is lost with a worker."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.errors import StorageError, VerificationError
from s4convert.study.cluster import ATTEMPTS, measured_by_workers
from s4convert.study.points import Point
from s4convert.study.results import Result
from tests.support.command_line import outcome_of, run_here, start
from tests.support.sweeps import rows_of

pytest.importorskip("ray")


def options(out: Path) -> tuple[object, ...]:
    data = ("--questions", QUESTIONS / "questions.json", "--images", QUESTIONS, "--conversation", "vicuna_v1")
    study = ("--rates", "0.125,0.25", "--compensations", "scale,none", "--max-new-tokens", "2")
    return ("sweep", MINI_LLAVA, "-o", out, *study, *data)


def workers() -> list[int]:
    """The processes that hold a model now."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if line.startswith(b"ray::_Worker"):
            found.append(int(process.name))
    return found


def test_two_workers_one_of_them_killed_find_what_one_process_finds(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert run_here(*options(alone)).exit_code == 0
    process = start(*options(together), "--ray", "local")
    deadline = time.monotonic() + 180  # a busy machine takes its time to start Ray
    while not list((together / "points").glob("*.json")) or not workers():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(workers()[0], signal.SIGKILL)
    outcome = outcome_of(process)
    assert outcome.exit_code == 0, outcome.stderr
    assert rows_of(together) == rows_of(alone)
    assert len(rows_of(together)) == 5


class Deadly:
    """A bench whose process one point ends, and whose model is not what it was."""

    def measured(self, point: Point) -> Result:
        if point.compensation == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        return Result(None, failure="measured")

    def check_unchanged(self) -> None:
        raise VerificationError("it was changed")


def test_a_point_that_kills_its_workers_fails_and_the_others_are_measured() -> None:
    points = [Point(None, kind, (), {"kind": kind}) for kind in ("one", "deadly", "other")]
    found: dict[str | None, str | None] = {}
    with pytest.raises(VerificationError, match=r"^it was changed$"):
        for point, result in measured_by_workers("local", points, Deadly, device="cpu", cpus=1):
            found[point.compensation] = result.failure
    assert (found["one"], found["other"]) == ("measured", "measured")
    assert found["deadly"] == f"its worker was lost {ATTEMPTS} times; is the memory too small for it?"


def refuse() -> Deadly:
    raise StorageError("gone: cannot be read")


def test_what_a_worker_cannot_open_ends_the_sweep() -> None:
    with pytest.raises(StorageError, match=r"^gone: cannot be read$"):
        list(measured_by_workers("local", [Point(None, "one", (), {})], refuse, device="cpu", cpus=1))
