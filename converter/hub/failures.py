"""Turns the errors of the Hub's client into one line each: what, where, and what to do.

The client raises its own errors, those of its HTTP library (by its version requests, httpx or httpx2) and those of its
transfer library; often the cause of an error says more than the error.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import HubError, S4ConvertError, StorageError
from ..redaction import redact

_MAX_SAID = 200  # characters of the Hub's own message that ours shows

_HTTP_LIBRARIES = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}
_NOT_CONNECTED = {"ConnectError", "ConnectionError", "ProxyError", "SSLError", "ConnectionRefusedError"}
_BROKEN_OFF = {"ConnectionResetError", "BrokenPipeError", "RemoteDisconnected", "IncompleteRead"}

_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.EFBIG, errno.ESTALE),
}

_LOG_IN = "set HF_TOKEN or run hf auth login"
_RUN_AGAIN = "run again"


@dataclass(frozen=True)
class _Task:
    """The arguments of :func:`hub_failures`."""

    where: str
    kept: str | None
    again: str
    otherwise: str | None

    def failure(self, what: str, remedy: str | None, again: bool = True) -> HubError:
        """The error that says *what* went wrong and what to do: the *remedy*, and to try *again*."""
        steps = [step for step in (remedy, self.again if again else None) if step]
        return HubError("; ".join(part for part in (f"{self.where}: {what}", self.kept, " and ".join(steps)) if part))

    def absence(self, what: str, remedy: str, again: bool = False) -> HubError:
        """The error of a name that is not found on the Hub, with *otherwise* as a hint."""
        return self.failure(what if self.otherwise is None else f"{what} ({self.otherwise})", remedy, again)


@contextmanager
def hub_failures(
    where: str, *, kept: str | None = None, again: str = _RUN_AGAIN, otherwise: str | None = None
) -> Iterator[None]:
    """Turn an error of the Hub's client into ours, which names *where*: the repository, or a file in it.

    Its message also says what is *kept* in spite of the failure, how to try *again* after the remedy and, where the
    repository is not found or the Hub not reached, the hint *otherwise*.

    Raises:
        HubError: the Hub cannot be reached, refuses, or does not have what was asked for.
        StorageError: the disk refused.
    """
    try:
        yield
    except S4ConvertError:
        raise
    except Exception as error:  # of the client, whose calls alone are in the block
        raise _told(error, _Task(where, kept, again, otherwise)) from error


def _told(error: Exception, task: _Task) -> S4ConvertError:
    chain = _chain(error)
    for cause in chain:
        told = _refusal(cause, task) or _disconnection(cause, task)
        if told is not None:
            return told
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _DISK:
            return StorageError(
                f"{cause.filename or task.where}: {os.strerror(cause.errno or 0)}; mend that and {task.again}"
            )
    sizes = re.search(r"should be of size \d+ but has size \d+", str(error))
    if sizes:  # the client's consistency check
        return task.failure(f"a file did not arrive whole: it {sizes[0]}", None)
    return task.failure(f"the Hub's client failed ({type(error).__name__}: {_shortened(str(error))})", None)


def _refusal(error: BaseException, task: _Task) -> HubError | None:
    """Our error where the Hub, or its client, refused the request."""
    from huggingface_hub.utils import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return task.absence("HF_HUB_OFFLINE is set, and this needs the Hub", "unset it", again=True)
    if isinstance(error, LocalEntryNotFoundError):
        if len(_chain(error)) > 1:  # the client looked in the cache because of another failure
            return None
        return task.absence("is not in the cache, and HF_HUB_OFFLINE is set", "unset it", again=True)
    if isinstance(error, GatedRepoError):
        page = f"{_endpoint()}/{task.where.partition('@')[0].partition(':')[0]}"
        return task.failure("is gated", f"ask for access at {page}" + ("" if _has_token() else f", {_LOG_IN}"))
    if isinstance(error, RepositoryNotFoundError):
        if _has_token():
            return task.absence(
                "no such repository on the Hub, or a private one that your token may not read", "check both"
            )
        return task.absence(
            "no such repository on the Hub, or a private one", f"check the name, and for a private one {_LOG_IN}"
        )
    if isinstance(error, RevisionNotFoundError):
        return task.failure("has no such branch, tag or commit", "check the revision", again=False)
    if isinstance(error, EntryNotFoundError):
        return task.failure("no such file in the repository", "check its path", again=False)
    response = getattr(error, "response", None)
    if not isinstance(getattr(response, "status_code", None), int):
        return None
    return _answer(response, getattr(error, "server_message", None), task)


def _answer(response: Any, message: str | None, task: _Task) -> HubError:
    """Our error for the HTTP status of *response*; *message* is the Hub's."""
    status: int = response.status_code
    said = f" ({_shortened(message)})" if message else ""
    if not str(response.url).startswith(_endpoint()):
        return task.failure(f"the Hub's storage answered HTTP {status}{said}", None)
    if status == 401 and not _has_token():
        return task.failure(f"the Hub asks who you are{said}", _LOG_IN)
    if status == 401:
        return task.failure(f"the Hub does not accept your token{said}", f"make a new one, {_LOG_IN}")
    if status == 403 and "disabled" in said:
        return task.failure(f"the Hub does not give it out{said}", None, again=False)
    if status == 403:
        return task.failure(f"your token has no permission for this{said}", "use one that has")
    if status in (409, 412):
        return task.failure(f"something else changed the repository meanwhile{said}", None)
    if status == 429:
        wait = str(response.headers.get("Retry-After"))
        return task.failure(
            f"too many requests{said}", f"wait {f'{wait} seconds' if wait.isdigit() else 'some minutes'}"
        )
    if status >= 500:
        return task.failure(f"the Hub is at fault, HTTP {status}{said}", "wait a while")
    return task.failure(f"the Hub answered HTTP {status}{said}", None)


def _disconnection(error: BaseException, task: _Task) -> HubError | None:
    """Our error where the connection failed."""
    from huggingface_hub.utils import LocalEntryNotFoundError

    name = type(error).__name__
    if name == "JSONDecodeError":
        return task.failure("the Hub answered what is not JSON", "check HF_ENDPOINT")
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    is_of_connection = modules & _HTTP_LIBRARIES or isinstance(error, (ConnectionError, TimeoutError))
    if not is_of_connection or isinstance(error, LocalEntryNotFoundError):  # in older clients, an HTTP error as well
        return None
    if "Timeout" in name:
        return task.failure(f"the Hub did not answer in time ({name})", None)
    was_connected = {type(cause).__name__ for cause in _chain(error)} & _BROKEN_OFF
    if was_connected or name not in _NOT_CONNECTED:
        return task.failure(f"the connection to the Hub broke off ({name})", None)
    what = f"the Hub at {_endpoint()} cannot be reached ({name})"
    return task.failure(
        what if task.otherwise is None else f"{what}, and {task.otherwise}", "check the network and HF_ENDPOINT"
    )


def _chain(error: BaseException) -> list[BaseException]:
    """*error*, its cause, the cause of that, and so on."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _has_token() -> bool:
    from huggingface_hub import get_token

    try:
        return bool(get_token())
    except Exception:  # newer clients may ask a server for it
        return False


def _endpoint() -> str:
    from huggingface_hub import constants

    return redact(str(constants.ENDPOINT))


def _shortened(text: str) -> str:
    """*text* on one line, redacted and cut to :data:`_MAX_SAID`."""
    line = redact(" ".join(text.split()))
    return line if len(line) <= _MAX_SAID else f"{line[: _MAX_SAID - 3]}..."
