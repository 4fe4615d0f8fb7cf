"""Git's own names for contents, folders and commits, and git-lfs pointers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime


def object_id(kind: str, content: bytes) -> str:
    """The SHA-1 that ``git hash-object -t KIND`` gives *content*."""
    return hashlib.sha1(b"%s %d\0" % (kind.encode(), len(content)) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git holds in the place of a large file of *size* bytes."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (sha256.encode(), size)


def tree_ids(blobs: Mapping[str, str]) -> dict[str, str]:
    """The id of every folder, by path, the root's being ``""``, from the files' blob ids by path."""
    children: dict[str, dict[str, str]] = {"": {}}
    for path, blob in blobs.items():
        folder, _, name = path.rpartition("/")
        while folder not in children:
            children[folder] = {}
            folder = folder.rpartition("/")[0]
        children[path.rpartition("/")[0]][name] = blob
    ids: dict[str, str] = {}
    for folder in sorted(children, key=lambda folder: folder.count("/") + bool(folder), reverse=True):
        names = {(name, f"100644 {name}"): blob for name, blob in children[folder].items()}
        for path, tree in ids.items():
            parent, _, name = path.rpartition("/")
            if parent == folder:
                names[f"{name}/", f"40000 {name}"] = tree  # git sorts a folder as if its name ended with a slash
        entries = (entry.encode() + b"\0" + bytes.fromhex(oid) for (_, entry), oid in sorted(names.items()))
        ids[folder] = object_id("tree", b"".join(entries))
    return ids


def commit_id(tree: str, parent: str | None, author: str, date: datetime, message: str) -> str:
    """The id of the commit of *tree* that *author* made at *date* (in UTC)."""
    signature = f"{author} <{author}@users.noreply.invalid> {int(date.timestamp())} +0000"
    lines = [f"tree {tree}", *([f"parent {parent}"] if parent else []), f"author {signature}"]
    return object_id("commit", "\n".join([*lines, f"committer {signature}", "", message]).encode())
