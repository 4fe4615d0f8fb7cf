"""A Hub on the loopback in a process of its own: it has threads, and who forks must have none."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path

from tests.battery.commands import Command
from tests.hub.conftest import TOKEN, environment_for
from tests.hub.server import LoopbackHub

_REPOSITORY = "lab/pruned"


class Hub(LoopbackHub):
    """What is asked of it from another process."""

    def begin(self) -> None:
        """Hold nothing, but for the account that pushes."""
        self.reset()
        self.add_user("alice", TOKEN, orgs=("lab",))

    def listen_at(self) -> str:
        self.start()
        return self.endpoint

    def held(self) -> str | None:
        """What the repository holds, or None where nothing was committed to it."""
        if _REPOSITORY not in self.repositories.by_id:
            return None
        files = self.files(_REPOSITORY)
        files.pop(".gitattributes", None)
        found = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
        return json.dumps(found) if found else None


class _Manager(BaseManager):
    pass


_Manager.register("Hub", Hub)


@contextmanager
def pushing(top: Path) -> Iterator[Command]:
    """The command that pushes a conversion of ``top/inputs`` to a Hub."""
    manager = _Manager(ctx=get_context("spawn"))
    manager.start()
    try:
        hub = manager.Hub()
        environment = environment_for(hub.listen_at(), top / "home")
        yield Command(
            "push",
            top,
            ("push", "inputs/converted", _REPOSITORY),
            "nothing",
            lambda _: hub.held(),
            before=hub.begin,
            environment=environment,
        )
    finally:
        manager.shutdown()
