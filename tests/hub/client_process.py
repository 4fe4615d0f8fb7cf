"""The real huggingface_hub client, in a process of its own that is told by its environment which Hub there is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any


class ClientError(Exception):
    """What the client raised: its classes' names, its own first, the message, and the answer's HTTP status."""

    def __init__(self, kinds: tuple[str, ...], message: str, status: int | None) -> None:
        super().__init__(kinds, message, status)  # what a pickle is made from
        self.kinds, self.message, self.status = kinds, message, status


class ClientProcess:
    """Calls functions where huggingface_hub has been imported under *environment*."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._executor = ProcessPoolExecutor(1, get_context("spawn"), _enter, (dict(environment),))

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """What *function* of some module returns there, or :class:`ClientError`."""
        result = self._executor.submit(_outcome, function, arguments, options).result()
        if isinstance(result, ClientError):
            raise result
        return result

    def api(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What a method of ``HfApi`` returns; a list for an iterator."""
        return self.call(_call_api, method, *arguments, **options)

    def close(self) -> None:
        self._executor.shutdown()


def _enter(environment: dict[str, str]) -> None:
    # Before huggingface_hub is imported, which reads it then.
    os.environ.clear()
    os.environ.update(environment)


def _call_api(method: str, *arguments: Any, **options: Any) -> Any:
    from huggingface_hub import CommitInfo, HfApi

    value = getattr(HfApi(), method)(*arguments, **options)
    if isinstance(value, CommitInfo):
        return SimpleNamespace(**vars(value))  # huggingface_hub 0.x's does not survive a pickle
    return list(value) if isinstance(value, Iterator) else value


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
