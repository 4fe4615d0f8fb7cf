"""Measures points on several workers at once, by Ray: on this machine, or on a cluster of machines.

Each worker is an actor with a GPU, or some processors, of its own; it loads the model once. Where one is lost, another
takes its place, and its point is measured again; a point at which several were lost has failed.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Protocol

from ..choices import RAY_LOCAL
from ..errors import UsageError
from .points import Point
from .results import Result

ATTEMPTS = 3  # at a point at which workers are lost, as where memory is short


class Bench(Protocol):
    """Measures points on a model that it holds."""

    def measured(self, point: Point) -> Result:
        """What *point* answers, or why it could not be measured."""

    def check_unchanged(self) -> None:
        """Raise VerificationError where the model is not as it was loaded."""


class _Worker:
    """What lives in a process of its own."""

    def __init__(self, open_bench: Callable[[], Bench]) -> None:
        self._open_bench = open_bench

    @cached_property
    def _bench(self) -> Bench:
        return self._open_bench()  # not before it is asked for, so that what is wrong with it is told as it is

    def measured(self, point: Point) -> Result:
        return self._bench.measured(point)

    def check_unchanged(self) -> None:
        self._bench.check_unchanged()


def measured_by_workers(
    address: str, points: Sequence[Point], open_bench: Callable[[], Bench], *, device: str, cpus: int
) -> Iterator[tuple[Point, Result]]:
    """Every one of *points* with its result, as they come, from the Ray cluster at *address*, or ``local``.

    A worker takes one GPU where *device* is one, else *cpus* processors; there are as many as the cluster has room for.

    Raises:
        UsageError: Ray cannot be reached, or has no room for one worker.
        S4ConvertError: what a worker raised.
    """
    import ray

    with _connected(ray, address):
        is_gpu = device.partition(":")[0] != "cpu"
        there = ray.cluster_resources()
        room = int(there.get("GPU", 0)) if is_gpu else int(there.get("CPU", 0)) // cpus
        if not room:
            wanted = "a GPU" if is_gpu else f"{cpus} processors"
            raise UsageError(f"`ray`: the cluster has no room for a worker with {wanted}")
        taken: dict[str, Any] = {"num_gpus": 1} if is_gpu else {"num_cpus": cpus}
        actor = ray.remote(**taken)(_Worker)
        yield from _shared_out(ray, points, lambda: actor.remote(open_bench), min(room, len(points)))


def _shared_out(
    ray: Any, points: Sequence[Point], new_worker: Callable[[], Any], most: int
) -> Iterator[tuple[Point, Result]]:
    """Every one of *points* with its result, from *most* workers at once."""
    waiting, losses = deque(points), Counter[str]()
    idle: list[Any] = [None] * most  # None becomes a worker when there is a point for it
    running: dict[Any, tuple[Any, Point]] = {}
    while waiting or running:
        while waiting and idle:
            worker, point = idle.pop() or new_worker(), waiting.popleft()
            running[worker.measured.remote(point)] = worker, point
        [done], _ = ray.wait(list(running))
        worker, point = running.pop(done)
        try:
            result = _answer(ray, done)
        except ray.exceptions.RayError:
            worker = None
            losses[point.name] += 1
            if losses[point.name] < ATTEMPTS:
                result = None
                waiting.append(point)
            else:
                result = Result(None, failure=f"its worker was lost {ATTEMPTS} times; is the memory too small for it?")
        idle.append(worker)
        if result is not None:
            yield point, result
    for asked in [worker.check_unchanged.remote() for worker in idle if worker is not None]:
        with suppress(ray.exceptions.RayError):  # of a worker that is lost meanwhile, nobody can say so
            _answer(ray, asked)


def _answer(ray: Any, asked: Any) -> Any:
    """What a worker answers, or raises; RayError where it is lost."""
    try:
        return ray.get(asked)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    quiet = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    try:
        if address == RAY_LOCAL:
            ray.init(**quiet)
        else:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"`ray` {address}: cannot be reached ({reason}); start the cluster, or use local") from error
    try:
        yield
    finally:
        ray.shutdown()
