"""Measures points on several workers at once, by Ray: on this machine, or on a cluster of machines.

Each worker is an actor with a GPU, or some processors, of its own; it loads the model once. Where one is lost, Ray
starts another in its place, and runs its point again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from ..choices import RAY_LOCAL
from ..errors import UsageError
from .points import Point
from .results import Result


class Bench(Protocol):
    """Measures points on a model that it holds."""

    def measured(self, point: Point) -> Result:
        """What *point* answers, or why it could not be measured."""

    def check_unchanged(self) -> None:
        """Raise VerificationError where the model is not as it was loaded."""


class _Worker:
    """What lives in a process of its own."""

    def __init__(self, open_bench: Callable[[], Bench]) -> None:
        self._bench = open_bench()

    def measured(self, point: Point) -> tuple[Point, Result]:
        return point, self._bench.measured(point)

    def check_unchanged(self) -> None:
        self._bench.check_unchanged()


def measured_by_workers(
    address: str, points: Sequence[Point], open_bench: Callable[[], Bench], *, device: str, cpus: int
) -> Iterator[tuple[Point, Result]]:
    """Every one of *points* with its result, as they come, from the Ray cluster at *address*, or ``local``.

    A worker takes one GPU where *device* is one, else *cpus* processors; there are as many as the cluster has room for.

    Raises:
        UsageError: Ray cannot be reached, or has no room for one worker.
    """
    import ray
    from ray.util import ActorPool

    with _connected(ray, address):
        is_gpu = device.partition(":")[0] != "cpu"
        there = ray.cluster_resources()
        room = int(there.get("GPU", 0)) if is_gpu else int(there.get("CPU", 0)) // cpus
        if not room:
            wanted = "a GPU" if is_gpu else f"{cpus} processors"
            raise UsageError(f"`ray`: the cluster has no room for a worker with {wanted}")
        taken: dict[str, Any] = {"num_gpus": 1} if is_gpu else {"num_cpus": cpus}
        actor = ray.remote(max_restarts=-1, max_task_retries=-1, **taken)(_Worker)
        workers = [actor.remote(open_bench) for _ in range(min(room, len(points)))]
        pool = ActorPool(workers)
        yield from pool.map_unordered(lambda worker, point: worker.measured.remote(point), list(points))
        ray.get([worker.check_unchanged.remote() for worker in workers])


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
