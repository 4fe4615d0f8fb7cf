"""What stands on the disk, as the tests look at it."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path


def digests(directory: Path) -> dict[str, str]:
    """The sha256 of every file in *directory*, by its relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def snapshot(directory: Path) -> dict[str, tuple[int, ...]]:
    """Everything in *directory*, links not followed: type and mode, and size and time of what is not a directory."""
    seen = {}
    for path in sorted(directory.rglob("*")):
        status = path.lstat()
        is_directory = stat.S_ISDIR(status.st_mode)
        seen[path.relative_to(directory).as_posix()] = (
            (status.st_mode,) if is_directory else (status.st_mode, status.st_size, status.st_mtime_ns)
        )
    return seen


def hidden_siblings(out: Path) -> list[str]:
    """What conversions to *out* have left beside it."""
    return sorted(path.name for path in out.parent.glob(f".{out.name}.*"))
