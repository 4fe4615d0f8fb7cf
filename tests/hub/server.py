"""Starts the Hub: two HTTP servers on the loopback, one for the API and one for large files.

``python -m tests.hub.server --port 8000`` runs it alone, with a user, until it is interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl

from tests.hub.faults import Answer, CorruptBody, CutBody, CutRequest, Delay, Fault, Kind, LoseAnswer, ShortenBody
from tests.hub.hub_api import HubApi, stored
from tests.hub.messages import RefusalError, Request, Response
from tests.hub.object_storage import ObjectStorage
from tests.hub.repositories import Repositories, Repository, User

HOST = "127.0.0.1"


class LoopbackHub:
    """A Hub at ``endpoint``, from ``start`` to ``stop``; what it holds outlives a stop.

    It keeps every request that reached it in ``requests``, and the traceback of every mistake of its own in
    ``errors``. ``api`` has its limits: ``large_file_size``, ``part_size``, ``page_size``.
    """

    def __init__(self, port: int = 0) -> None:
        self._ports = {"hub": port, "storage": 0}
        self._servers: list[_Server] = []
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all: accounts, repositories, requests, faults, and changed limits."""
        self.storage = ObjectStorage()
        self.api = HubApi(Repositories(), self.storage)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []
        self._publish()

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self._ports['hub']}"

    @property
    def repositories(self) -> Repositories:
        return self.api.repositories

    # --- running -------------------------------------------------------------------------------------------------

    def start(self) -> LoopbackHub:
        """Listen: at the same ports as before, if it has run before."""
        for name, answer in (("hub", self._answer_as_hub), ("storage", self._answer_as_storage)):
            server = _Server((HOST, self._ports[name]), self, name, answer)
            self._ports[name] = server.server_address[1]
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self._publish()
        return self

    def stop(self) -> None:
        """Refuse connections, and cut those that are open."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
            server.cut_all()
        self._servers.clear()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _publish(self) -> None:
        self.api.endpoint = self.endpoint
        self.storage.endpoint = f"http://{HOST}:{self._ports['storage']}"

    def _answer_as_hub(self, request: Request) -> Response:
        return self.api.answer(request)

    def _answer_as_storage(self, request: Request) -> Response:
        return self.storage.answer(request)

    # --- what a test sets up and looks at ------------------------------------------------------------------------

    def add_user(self, name: str, token: str, orgs: tuple[str, ...] = (), can_write: bool = True) -> User:
        user = User(name, token, tuple(orgs), can_write)
        self.repositories.users[token] = user
        return user

    def create_repo(self, id: str, *, private: bool = False, gated: bool = False) -> Repository:  # noqa: A002
        """A repository whose namespace need not be a user's; :meth:`grant` opens a gated one to others."""
        return self.repositories.create(id, private=private, gated=gated)

    def grant(self, id: str, user: str) -> None:  # noqa: A002
        self.repositories.by_id[id].granted.add(user)

    def commit(self, id: str, files: Mapping[str, bytes], branch: str = "main") -> str:  # noqa: A002
        """Add *files* to a branch, which begins at ``main`` if it is new; the commit's hash."""
        repository = self.repositories.by_id[id]
        head = repository.resolve(repository.branches.setdefault(branch, repository.branches["main"]))
        added = stored(repository, head, files.items(), self.api.large_file_size)
        commit = repository.add({**head.files, **added}, head.oid, repository.namespace, "Add files")
        repository.branches[branch] = commit.oid
        return commit.oid

    def files(self, id: str, revision: str = "main") -> dict[str, bytes]:  # noqa: A002
        """Every file's content by path, ``.gitattributes`` included; pointers are followed."""
        repository = self.repositories.by_id[id]
        return {path: repository.content(file) for path, file in repository.resolve(revision).files.items()}

    def fail(self, method: str, path: str, kind: Kind, *, skip: int = 0, times: int | None = 1) -> Fault:
        """Let requests go wrong: see :class:`tests.hub.faults.Fault`."""
        fault = Fault(kind, method, path, skip, times)
        self.faults.append(fault)
        return fault

    # --- answering -----------------------------------------------------------------------------------------------

    def record(self, request: Request) -> tuple[Kind, ...]:
        """Note *request*, and say what goes wrong with it."""
        with self._lock:
            self.requests.append(request)
            return tuple(fault.kind for fault in self.faults if fault.strikes(request.method, request.path))

    def answer(self, answer: Callable[[Request], Response], request: Request) -> Response:
        with self._lock:
            try:
                return answer(request)
            except RefusalError as refusal:
                return refusal.response()
            except Exception:
                self.errors.append(f"{request}\n{traceback.format_exc()}")
                return RefusalError(
                    500, "Internal Error - We're working hard to fix this as soon as possible!"
                ).response()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], hub: LoopbackHub, name: str, answer: Callable[[Request], Response]
    ) -> None:
        self.hub, self.name, self.answer = hub, name, answer
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no mistake of the server's; whatever else goes wrong is."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            self.hub.errors.append(traceback.format_exc())


_request_numbers = itertools.count(1)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer's body waits 40 ms for the receipt of its headers
    server: _Server

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.name, self.command, path, dict(parse_qsl(query)), headers)
        kinds = self.server.hub.record(request)
        instead: Response | None = None
        for kind in kinds:
            if isinstance(kind, CutRequest):
                self._read(kind.after)
                return self._cut()
            if isinstance(kind, Delay):
                time.sleep(kind.seconds)
            if isinstance(kind, Answer):
                instead = Response(kind.status, kind.headers, kind.body)
        body = self._read_body()
        response = instead or self.server.hub.answer(self.server.answer, replace(request, body=body))
        end = len(response.body)
        for kind in kinds:
            if isinstance(kind, LoseAnswer):
                return self._cut()
            if isinstance(kind, ShortenBody):
                response = replace(response, body=response.body[: kind.length])
                end = len(response.body)
            if isinstance(kind, CorruptBody):
                response = replace(response, body=response.body[:-1] + bytes([response.body[-1] ^ 1]))
            if isinstance(kind, CutBody):
                end = min(kind.after, len(response.body) - 1)
        self._send(response, end)
        return None

    def _send(self, response: Response, end: int) -> None:
        self.send_response(response.status)
        self.send_header("X-Request-Id", f"Root=1-{next(_request_numbers):08x}")
        self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, " ".join(value.encode("ascii", "replace").decode().split()))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:end])
            if end < len(response.body):
                self._cut()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self._read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionResetError("the client went away")
        return content

    def _cut(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """``LoopbackHub.requests`` is the log."""


def main() -> None:
    parser = argparse.ArgumentParser(description="A Hugging Face Hub on the loopback.")
    parser.add_argument("--port", type=int, default=0, help="a free one by default")
    parser.add_argument("--user", default="user", help="the name of the one user, who may write (default: user)")
    parser.add_argument("--token", default="hf_loopback", help="that user's access token (default: hf_loopback)")
    parser.add_argument("--org", action="append", default=[], help="an organisation that the user belongs to")
    options = parser.parse_args()
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # in the servers' threads too, so that none is lost before the wait
    with LoopbackHub(options.port) as hub:
        hub.add_user(options.user, options.token, tuple(options.org))
        print(hub.endpoint, flush=True)  # noqa: T201
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
