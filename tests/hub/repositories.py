"""What a Hub holds: accounts, and model repositories with their commits, references and large objects."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatch
from functools import cached_property

from tests.hub.git_objects import commit_id, lfs_pointer, object_id, tree_ids

LARGE_FILE_SIZE = 10 * 2**20  # bytes; a larger file goes by LFS whatever its name

_LARGE_SUFFIXES = """
7z arrow bin bz2 ckpt ftz gz h5 joblib lfs.* mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar
safetensors tar tflite tgz wasm xz zip zst
"""

# What a new repository on the Hub begins with.
GIT_ATTRIBUTES = "".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in _LARGE_SUFFIXES.split()
).encode()

REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]{1,96}")


class RevisionNotFoundError(Exception):
    """A repository has no branch, tag, pull request or commit of this name."""


@dataclass(frozen=True)
class User:
    """An account, with the one token that it has."""

    name: str
    token: str
    organisations: tuple[str, ...]
    can_write: bool

    def belongs_to(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.organisations


@dataclass(frozen=True)
class LargeFile:
    """What a git-lfs pointer points to."""

    sha256: str
    size: int


@dataclass(frozen=True)
class StoredFile:
    """A file as git holds it: *blob* is its content, or the pointer to it where it is *large*."""

    blob: bytes
    large: LargeFile | None = None

    @classmethod
    def pointing_to(cls, large: LargeFile) -> StoredFile:
        return cls(lfs_pointer(large.sha256, large.size), large)

    @cached_property
    def oid(self) -> str:
        return object_id("blob", self.blob)

    @property
    def etag(self) -> str:
        return self.large.sha256 if self.large else self.oid

    @property
    def size(self) -> int:
        return self.large.size if self.large else len(self.blob)


@dataclass(frozen=True)
class Commit:
    """A state of all files, by path, and what it followed."""

    files: Mapping[str, StoredFile]
    parent: str | None
    author: str
    date: datetime
    title: str
    description: str = ""

    @property
    def message(self) -> str:
        return f"{self.title}\n\n{self.description}" if self.description else self.title

    @cached_property
    def trees(self) -> dict[str, str]:
        """The ids of folders by path."""
        return tree_ids({path: file.oid for path, file in self.files.items()})

    @cached_property
    def oid(self) -> str:
        return commit_id(self.trees[""], self.parent, self.author, self.date, self.message)


_seconds = itertools.count()


def _now() -> datetime:
    """A time of its own for every commit, the same in every run."""
    return datetime(2024, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=next(_seconds))


@dataclass
class Repository:
    """A model repository; *objects* are the large files' contents, by SHA-256."""

    id: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)  # who may read it though it is gated
    created: datetime = field(default_factory=_now)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[int, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def add(
        self, files: Mapping[str, StoredFile], parent: str | None, author: str, title: str, description: str = ""
    ) -> Commit:
        """Store a commit that no reference points to yet."""
        commit = Commit(dict(sorted(files.items())), parent, author, _now(), title, description)
        self.commits[commit.oid] = commit
        return commit

    def resolve(self, revision: str) -> Commit:
        """The commit that a branch, tag, ``refs/...`` name or hash names."""
        named = dict(self.references()) | {**self.tags, **self.branches}
        oid = named.get(revision, revision)
        if oid not in self.commits:
            raise RevisionNotFoundError(revision)
        return self.commits[oid]

    def references(self) -> Iterator[tuple[str, str]]:
        """Every reference's full name, with the commit it points to."""
        yield from ((f"refs/heads/{name}", oid) for name, oid in self.branches.items())
        yield from ((f"refs/tags/{name}", oid) for name, oid in self.tags.items())
        yield from ((f"refs/pr/{number}", oid) for number, oid in self.pull_requests.items())

    def advance(self, revision: str, oid: str) -> None:
        """Let the branch or pull request *revision* point to *oid*; nothing else can move."""
        if (name := revision.removeprefix("refs/heads/")) in self.branches:
            self.branches[name] = oid
        elif (number := re.fullmatch(r"refs/pr/(\d+)", revision)) and int(number[1]) in self.pull_requests:
            self.pull_requests[int(number[1])] = oid
        else:
            raise RevisionNotFoundError(revision)

    def history(self, commit: Commit) -> Iterator[Commit]:
        """*commit* and those before it, the newest first."""
        yield commit
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            yield commit

    def last_change(self, commit: Commit, path: str) -> Commit:
        """The newest commit up to *commit* that gave the file or folder at *path* what it holds."""

        def at(commit: Commit) -> str | None:
            file = commit.files.get(path)
            return file.oid if file else commit.trees.get(path)

        last = commit
        for earlier in self.history(commit):
            if at(earlier) != at(commit):
                break
            last = earlier
        return last

    def content(self, file: StoredFile) -> bytes:
        return self.objects[file.large.sha256] if file.large else file.blob

    def store(self, content: bytes) -> LargeFile:
        """Keep *content* as a large object."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return LargeFile(sha256, len(content))


def goes_by_lfs(path: str, size: int, commit: Commit, large_file_size: int) -> bool:
    """Whether the Hub keeps *path* out of git: by the ``.gitattributes`` of *commit*, or because it is too big."""
    attributes = commit.files.get(".gitattributes")
    rules = attributes.blob.decode().splitlines() if attributes else []
    patterns = [rule.split()[0] for rule in rules if "filter=lfs" in rule]
    name = path.rpartition("/")[2]
    return size > large_file_size or any(fnmatch(path if "/" in pattern else name, pattern) for pattern in patterns)


class Repositories:
    """All accounts and repositories of a Hub."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}  # by token
        self.by_id: dict[str, Repository] = {}
        self.moved: dict[str, str] = {}  # from a repository's earlier ids to its present one

    def create(self, id: str, *, private: bool = False, gated: bool = False) -> Repository:  # noqa: A002
        """A new repository, with the first commit that the Hub makes in each."""
        repository = Repository(id, private, gated)
        first = repository.add({".gitattributes": StoredFile(GIT_ATTRIBUTES)}, None, "system", "initial commit")
        repository.branches["main"] = first.oid
        self.by_id[id] = repository
        self.moved.pop(id, None)
        return repository

    def move(self, repository: Repository, to: str) -> None:
        """Give *repository* the id *to*; its earlier ids lead there."""
        del self.by_id[repository.id]
        for earlier in [old for old, new in self.moved.items() if new == repository.id]:
            self.moved[earlier] = to
        self.moved[repository.id] = to
        self.moved.pop(to, None)
        repository.id = to
        self.by_id[to] = repository
