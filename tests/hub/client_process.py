"""The real huggingface_hub client, in a process of its own that is told by its environment which Hub there is."""

from __future__ import annotations

import functools
import gc
import importlib
import logging
import os
import ssl
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.support.command_line import ROOT, Outcome, run_here

NEW_CLIENT = int(version("huggingface_hub").partition(".")[0]) >= 1  # whose HTTP library is another
PATIENCE = 120  # seconds that one call may take

# Of the client, what reads the environment, sets up logging, and keeps in memory what the cache holds.
READ_AT_IMPORT = ("huggingface_hub.constants", "huggingface_hub.utils.logging", "huggingface_hub._tree_cache")


class ClientError(Exception):
    """What the client raised: its classes' names, its own first, the message, and the answer's HTTP status."""

    def __init__(self, kinds: tuple[str, ...], message: str, status: int | None) -> None:
        super().__init__(kinds, message, status)  # what a pickle is made from
        self.kinds, self.message, self.status = kinds, message, status


class ClientProcess:
    """Calls functions where huggingface_hub has been imported under *environment*, and never waits between its tries.

    Under another environment, a call finds a client that has read that one, and remembers nothing of earlier calls.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, dict(environment)), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What *function* of some module returns there, or :class:`ClientError`."""
        self._pipe.send((function, arguments, options))
        if not self._pipe.poll(PATIENCE):
            self._process.kill()
            raise TimeoutError(f"{function.__name__} took longer than {PATIENCE} seconds")
        result = self._pipe.recv()
        if isinstance(result, ClientError):
            raise result
        return result

    def call_under(
        self, environment: Mapping[str, str], function: Callable[..., Any], *arguments: Any, **options: Any
    ) -> Any:
        """What *function* returns there under *environment*."""
        return self.call(_call_under, dict(environment), function, arguments, options)

    def api(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What a method of ``HfApi`` returns; a list for an iterator."""
        return self.call(_call_api, method, *arguments, **options)

    def run(self, environment: Mapping[str, str], *arguments: object) -> Outcome:
        """What the command leaves when it is run there under *environment*."""
        outcome: Outcome = self.call(_run_under, dict(environment), tuple(map(str, arguments)))
        return outcome

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(calls: Connection, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    import huggingface_hub.utils  # noqa: F401, which reads the environment now

    # The client waits up to 23 seconds between its tries; these waits are left out.
    time.sleep = lambda seconds: None
    # Each of its sessions reads all certificates, which takes longer than most commands; the loopback has none.
    ssl.create_default_context = functools.cache(ssl.create_default_context)
    while True:
        try:
            function, arguments, options = calls.recv()
        except EOFError:
            gc.freeze()  # or Python would look through all of torch before it ends, which takes a second
            return
        with mock.patch.dict(os.environ):  # which modules of tests may set when they are imported
            calls.send(_outcome(function, arguments, options))


def _call_api(method: str, *arguments: Any, **options: Any) -> Any:
    from huggingface_hub import CommitInfo, HfApi

    value = getattr(HfApi(), method)(*arguments, **options)
    if isinstance(value, CommitInfo):
        return SimpleNamespace(**vars(value))  # huggingface_hub 0.x's does not survive a pickle
    return list(value) if isinstance(value, Iterator) else value


def _call_under(
    environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    with _instead_of_ours(environment):
        _read_environment()
        return function(*arguments, **options)


def _run_under(environment: dict[str, str], arguments: tuple[str, ...]) -> Outcome:
    with _instead_of_ours(environment):
        return run_here(*arguments, first=_read_environment)


@contextmanager
def _instead_of_ours(environment: dict[str, str]) -> Iterator[None]:
    try:
        # Python shows a warning once for each place in the code; within catch_warnings it begins anew.
        with mock.patch.dict(os.environ, environment, clear=True), warnings.catch_warnings():
            yield
    finally:
        _read_environment()


def _read_environment() -> None:
    """Let the client do again what it does when it is imported, and forget what it has seen."""
    logging.getLogger("huggingface_hub").handlers.clear()
    for name in READ_AT_IMPORT:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    from huggingface_hub import utils

    (utils.close_session if hasattr(utils, "close_session") else utils.reset_sessions)()


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        return function(*arguments, **options)
    except Exception as error:
        cause = error
        while cause.__cause__ is not None and getattr(cause, "response", None) is None:
            cause = cause.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        kinds = tuple(kind.__name__ for kind in type(error).__mro__)
        return ClientError(kinds, str(error), status)
