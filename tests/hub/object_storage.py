"""Where large files are uploaded to and downloaded from: a server of its own, with signed addresses and no tokens."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tests.hub.messages import RefusalError, Request, Response, of_range
from tests.hub.repositories import LargeFile, Repository


@dataclass
class MultipartUpload:
    """An upload in *num_parts* parts of *part_size* bytes, the last one shorter."""

    repository: Repository
    large: LargeFile
    part_size: int
    parts: dict[int, bytes] = field(default_factory=dict)

    @property
    def num_parts(self) -> int:
        return -(-self.large.size // self.part_size)


class ObjectStorage:
    """Signs addresses for the Hub, and answers requests to them."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._key = secrets.token_bytes(32)
        self._repositories: dict[str, Repository] = {}  # by the part of an address that stands for one
        self._expected: dict[str, LargeFile] = {}  # by the path it is to be uploaded to
        self._multipart: dict[str, MultipartUpload] = {}

    def download_address(self, repository: Repository, large: LargeFile) -> str:
        return self._signed("GET", f"/{self._folder(repository)}/{large.sha256}")

    def upload_address(self, repository: Repository, large: LargeFile) -> str:
        path = f"/{self._folder(repository)}/{large.sha256}"
        self._expected[path] = large
        return self._signed("PUT", path)

    def begin_multipart(self, repository: Repository, large: LargeFile, part_size: int) -> tuple[str, dict[str, str]]:
        """The id of a new upload in parts, and the address for each part by its number from 1."""
        upload = MultipartUpload(repository, large, part_size)
        id_ = secrets.token_hex(8)
        self._multipart[id_] = upload
        numbers = range(1, upload.num_parts + 1)
        return id_, {str(number): self._signed("PUT", f"/parts/{id_}/{number}") for number in numbers}

    def complete_multipart(self, id_: str, parts: Sequence[Mapping[str, Any]]) -> None:
        """Put the uploaded parts together, in the order of *parts*, each of a ``partNumber`` and an ``etag``."""
        upload = self._multipart.get(id_)
        if upload is None:
            raise RefusalError(404, "The specified upload does not exist.")
        content = b""
        for part in parts:
            stored = upload.parts.get(part["partNumber"])
            if stored is None or part["etag"] != _etag(stored):
                raise RefusalError(400, "One or more of the specified parts could not be found.")
            content += stored
        _check(content, upload.large)
        upload.repository.store(content)
        del self._multipart[id_]

    def answer(self, request: Request) -> Response:
        if "authorization" in request.headers:
            raise RefusalError(400, "Only one auth mechanism allowed: the signed address or the Authorization header")
        method = "PUT" if request.method == "PUT" else "GET"
        if not hmac.compare_digest(request.query.get("signature", ""), self._signature(method, request.path)):
            raise RefusalError(403, "The request signature we calculated does not match the signature you provided.")
        folder, _, name = request.path.strip("/").partition("/")
        if folder == "parts":
            return self._store_part(name, request.body)
        if method == "PUT":
            large = self._expected[request.path]
            _check(request.body, large)
            self._repositories[folder].store(request.body)
            return Response(200, {"ETag": _etag(request.body)})
        content = self._repositories[folder].objects.get(name)
        if content is None:
            raise RefusalError(404, "The specified key does not exist.")
        return of_range(request, content, {"ETag": f'"{name}"', "Content-Type": "binary/octet-stream"})

    def _store_part(self, name: str, content: bytes) -> Response:
        id_, _, number = name.partition("/")
        if id_ not in self._multipart:
            raise RefusalError(404, "The specified upload does not exist.")
        self._multipart[id_].parts[int(number)] = content
        return Response(200, {"ETag": _etag(content)})

    def _folder(self, repository: Repository) -> str:
        folder = hashlib.sha256(repr(id(repository)).encode()).hexdigest()[:16]
        self._repositories[folder] = repository
        return folder

    def _signature(self, method: str, path: str) -> str:
        return hmac.new(self._key, f"{method} {path}".encode(), "sha256").hexdigest()

    def _signed(self, method: str, path: str) -> str:
        return f"{self.endpoint}{path}?{urlencode({'signature': self._signature(method, path)})}"


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _check(content: bytes, large: LargeFile) -> None:
    if len(content) != large.size or hashlib.sha256(content).hexdigest() != large.sha256:
        raise RefusalError(400, "The content does not have the size and the SHA-256 that were announced.")
