"""Requests and answers, whatever they are about."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Request:
    """What a client sent; header names are in lower case, *path* has no query and is still percent-encoded.

    *server* is ``hub`` or ``storage``. *body* is kept while the request is answered, and dropped from the record.
    """

    server: str
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def token(self) -> str | None:
        """The access token that came with it."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" else None

    def json(self) -> Any:
        return json.loads(self.body)

    def fields(self) -> dict[str, list[str]]:
        """The body's fields, by name, where it is a form or a JSON object."""
        if "json" in self.headers.get("content-type", ""):
            return {key: value if isinstance(value, list) else [value] for key, value in self.json().items()}
        return parse_qs(self.body.decode(), keep_blank_values=True)


@dataclass(frozen=True)
class Response:
    """What the server answers; the length is added when it is sent."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def of_json(cls, value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        content_type = {"Content-Type": "application/json; charset=utf-8"}
        return cls(status, content_type | dict(headers or {}), json.dumps(value).encode())


class RefusalError(Exception):
    """A request that is answered with an error, in the form that the Hub gives its errors."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, dict(headers or {})

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return Response.of_json({"error": self.message}, self.status, headers)


def of_range(request: Request, content: bytes, headers: Mapping[str, str]) -> Response:
    """*content*, or the one range of it that *request* asks for."""
    headers = {"Accept-Ranges": "bytes", **headers}
    size = len(content)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not asked or not any(asked.groups()):
        return Response(200, headers, content)
    start, end = asked.groups()
    first = int(start) if start else max(size - int(end), 0)
    last = min(int(end), size - 1) if start and end else size - 1
    if first > last:
        return Response(416, {"Content-Range": f"bytes */{size}"})
    return Response(206, {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}, content[first : last + 1])
