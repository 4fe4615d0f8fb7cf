"""What goes wrong between here and the Hub, as one line each: what, where, and what to do.

The client raises its own errors, those of its HTTP library (requests, httpx or httpx2, by its version), of its
transfer library, and bare ones around all of them; what tells most is often a cause of what is raised.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from converter.errors import HubError, S4ConvertError, StorageError
from converter.redaction import redact

_HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2")
_BROKEN = {
    "ConnectionResetError",
    "BrokenPipeError",
    "RemoteDisconnected",
    "IncompleteRead",
}  # also inside a ConnectionError
_MAX_SAID = 200  # characters of what the Hub says of itself

_LOG_IN = "set HF_TOKEN or run hf auth login"


@contextmanager
def hub_failures(where: str, then: str = "run again") -> Iterator[None]:
    """Turn what the Hub's client raises into an error of ours.

    *where* is the repository, and the file, if it is about one; *then* is how to go on once the cause is mended.

    Raises:
        HubError: the Hub could not be reached, refused, or does not have what was asked for.
        StorageError: the disk refused.
    """
    try:
        yield
    except S4ConvertError:
        raise
    except Exception as error:  # the block holds calls of the client only, so whatever it is, it is the client's
        raise _told(error, where, then) from error


def _told(error: Exception, where: str, then: str) -> S4ConvertError:
    chain = _chain(error)
    for cause in chain:
        what = _refusal(cause, where, then) or _disconnection(cause, then)
        if what:
            return HubError(f"{where}: {what}")
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _DISK_ERRORS:
            file = cause.filename or where
            return StorageError(f"{file}: {os.strerror(cause.errno or 0)}; mend that and {then}")
    said = _shortened(str(error) or type(error).__name__)
    return HubError(f"{where}: {said}; {then}")


def _refusal(error: BaseException, where: str, then: str) -> str | None:
    """What the Hub, or its client in its name, says no to."""
    from huggingface_hub.utils import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and this needs the Hub; unset it and run again"
    if isinstance(error, LocalEntryNotFoundError):
        return None if _is_due_to_another(error) else "is not in the cache, and HF_HUB_OFFLINE is set; unset it"
    if isinstance(error, GatedRepoError):
        return f"is gated; ask for access at {_page(where)}, then {_LOG_IN if not _has_token() else then}"
    if isinstance(error, RepositoryNotFoundError):
        if _has_token():
            return "no such repository on the Hub, or a private one that your token may not read; check both"
        return f"no such repository on the Hub, or a private one; check the name, and for a private one {_LOG_IN}"
    if isinstance(error, RevisionNotFoundError):
        return "has no such branch, tag or commit; check the revision"
    if isinstance(error, EntryNotFoundError):
        return "no such file in the repository; check its path"
    response = getattr(error, "response", None)
    if response is None or not isinstance(getattr(response, "status_code", None), int):
        return None
    return _answer(response, getattr(error, "server_message", None), then)


def _answer(response: Any, message: str | None, then: str) -> str:
    """What an HTTP status says."""
    status: int = response.status_code
    said = f" ({_shortened(message)})" if message else ""
    if status == 401:
        return (
            f"the Hub does not accept your token{said}; make a new one, then {_LOG_IN}"
            if _has_token()
            else (f"the Hub asks who you are{said}; {_LOG_IN}")
        )
    if status == 403:
        return f"your token has no permission for this{said}; use one that may, such as one of role write"
    if status in (409, 412):
        return f"something else changed the repository meanwhile{said}; {then}"
    if status == 429:
        wait = _seconds(response.headers.get("Retry-After"))
        return f"too many requests{said}; wait {wait} and {then}"
    if status >= 500:
        return f"the Hub is at fault (HTTP {status}){said}; {then} in a while"
    return f"the Hub answered HTTP {status}{said}; {then}"


def _disconnection(error: BaseException, then: str) -> str | None:
    """What kept requests or answers from arriving, where that is what *error* says."""
    modules = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if not modules & set(_HTTP_LIBRARIES) and not isinstance(error, (ConnectionError, TimeoutError)):
        return None
    name = type(error).__name__
    if "Timeout" in name:
        return f"the Hub did not answer in time ({name}); {then}"
    was_connected = {type(cause).__name__ for cause in _chain(error)} & _BROKEN
    if was_connected or name not in ("ConnectError", "ConnectionError", "ProxyError", "SSLError"):
        return f"the connection to the Hub broke ({name}); {then}"
    return f"the Hub at {_endpoint()} cannot be reached ({name}); check the network and HF_ENDPOINT, then {then}"


_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EFBIG, errno.ESTALE),
)


def _chain(error: BaseException) -> list[BaseException]:
    """*error* and what it was raised from or during, the outermost first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _is_due_to_another(error: BaseException) -> bool:
    """Whether a file was looked for in the cache only because something else had failed."""
    return len(_chain(error)) > 1


def _has_token() -> bool:
    from huggingface_hub import get_token

    try:
        return bool(get_token())
    except Exception:  # newer clients may ask a server for one
        return False


def _endpoint() -> str:
    from huggingface_hub import constants

    return redact(str(constants.ENDPOINT))


def _page(where: str) -> str:
    """The page of the repository that *where* begins with."""
    return f"{_endpoint()}/{where.partition('@')[0].partition(':')[0]}"


def _seconds(retry_after: str | None) -> str:
    return f"{retry_after} seconds" if retry_after is not None and retry_after.isdigit() else "some minutes"


def _shortened(text: str) -> str:
    """One line of *text* that may be shown."""
    line = redact(" ".join(text.split()))
    return line if len(line) <= _MAX_SAID else f"{line[: _MAX_SAID - 3]}..."
