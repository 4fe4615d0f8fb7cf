"""Write one file whole or not at all: under another name, to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .errors import StorageError, UsageError


def check_output(path: Path, *, force: bool) -> None:
    """Refuse a *path* that cannot be written; call it before work that takes long.

    Raises:
        UsageError: something stands there, and it is no file or *force* is off.
        StorageError: its directory does not exist.
    """
    if path.is_symlink():
        raise UsageError(f"{path}: is a symbolic link; name the file itself")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: is not a file; choose another name")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists; choose another name, or replace it with --force")
    if not path.parent.is_dir():
        raise StorageError(f"{path.parent}: no such directory; create it first")


def write_output(path: Path, text: str, *, force: bool) -> None:
    """Write the ASCII *text* to *path* and bring it to the disk; with *force*, a file that stands there is replaced.

    Raises:
        UsageError, StorageError: as :func:`check_output` says, or the disk refused; *path* is as it was.
    """
    check_output(path, force=force)
    unfinished = path.parent / f".s4convert-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        try:
            with unfinished.open("x", encoding="ascii", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            check_output(path, force=force)  # something may have been put there meanwhile
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def sync_directory(directory: Path) -> None:
    """Bring the entries of *directory* to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
