"""What may go wrong on the way to a Hub and back, on request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """Answer this instead, without doing what was asked; the request's body is read and dropped."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class CutRequest:
    """Cut the connection after this many bytes of the request's body, without doing what was asked."""

    after: int = 0


@dataclass(frozen=True)
class LoseAnswer:
    """Do what was asked, then cut the connection instead of answering."""


@dataclass(frozen=True)
class CutBody:
    """Cut the connection after this many bytes of the answer's body."""

    after: int


@dataclass(frozen=True)
class ShortenBody:
    """Answer with no more than the first *length* bytes of the body, as if they were all."""

    length: int


@dataclass(frozen=True)
class CorruptBody:
    """Answer with a body of the right length that is wrong in its last byte."""


@dataclass(frozen=True)
class Delay:
    """Answer this many seconds later."""

    seconds: float


Kind = Answer | CutRequest | LoseAnswer | CutBody | ShortenBody | CorruptBody | Delay


@dataclass
class Fault:
    """*kind* happens to requests whose method is *method* and whose path has a match of the regular expression *path*.

    Of these requests, the first *skip* are spared and the next *times* hit, all of them if *times* is None;
    *hits* counts.
    """

    kind: Kind
    method: str
    path: str
    skip: int = 0
    times: int | None = 1
    hits: int = 0
    _spared: int = 0

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is hit; to be asked once for each request."""
        if method != self.method or not re.search(self.path, path):
            return False
        if self._spared < self.skip:
            self._spared += 1
            return False
        if self.times is not None and self.hits >= self.times:
            return False
        self.hits += 1
        return True
