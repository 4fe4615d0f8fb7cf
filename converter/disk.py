"""Reading and writing files: small ones whole, directories to the last entry, output whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from .errors import S4ConvertError, StorageError, UsageError, reading
from .progress import Advance

SMALL_BYTES = 16 << 20  # the most that is read of a file of JSON or text; the index of the largest models has 10 MB
UNFINISHED = ".s4convert-"  # how the name of a file begins that is being written

_BLOCK_BYTES = 1 << 20
_SHA256_ATTRIBUTE = "user.s4convert.sha256"


def read_file(path: Path, refusal: type[S4ConvertError], most: int | None = SMALL_BYTES) -> bytes:
    """The content of the file *path*, of *most* bytes.

    Raises:
        S4ConvertError: it is a directory, a pipe or a device, or has more bytes; the class is *refusal*.
        StorageError: it cannot be read.
    """
    with reading(path):
        status = path.stat()
        if not S_ISREG(status.st_mode):  # reading from a pipe may never end
            raise refusal(f"{path}: is not a regular file; put one in its place")
        if most is not None and status.st_size > most:
            raise refusal(f"{path}: has {status.st_size:,} bytes, and at most {most:,} are read; is it the right file?")
        with path.open("rb") as file:
            return file.read(-1 if most is None else most)  # not more, even if it grows


def walk(top: Path, *, without: Collection[str] = ()) -> Iterator[str]:
    """The names, relative to *top*, of all that stands below it and is no directory; links are not followed.

    An empty directory is told as well, with a slash at its end. A directory named in *without* is told as if it were a
    file, and not entered. OSError where one cannot be read: what is in it would otherwise be passed over in silence, as
    :func:`os.walk` does.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(top / folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        if folder and not found:
            yield folder
        for entry in found:
            if entry.is_dir(follow_symlinks=False) and entry.name not in without:
                folders.append(f"{folder}{entry.name}/")
            else:
                yield f"{folder}{entry.name}"


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
        raise UsageError(f"{path}: exists; choose another name, or replace it with `force=True`")
    if not path.parent.is_dir():
        raise StorageError(f"{path.parent}: no such directory; create it first")


def check_json_name(path: Path) -> None:
    """Raise UsageError unless the name of *path* says that it is JSON: by another, readers take it for an array."""
    if path.suffix.lower() != ".json":
        raise UsageError(f"{path}: is written as JSON; give it a name that ends in .json")


def write_output(path: Path, text: str, *, force: bool) -> None:
    """Write the ASCII *text* to *path* and bring it to the disk; with *force*, a file that stands there is replaced.

    Raises:
        UsageError, StorageError: as :func:`check_output` says, or the disk refused; *path* is as it was.
    """
    check_output(path, force=force)
    unfinished = path.parent / f"{UNFINISHED}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        try:
            write_synced(unfinished, text.encode("ascii"))
            check_output(path, force=force)  # something may have been put there meanwhile
            unfinished.rename(path)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_synced(path: Path, content: bytes) -> None:
    """Write the new file *path* and bring it to the disk; OSError where the disk refuses."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring the content of a file, or the entries of a directory, to the disk; OSError where the disk refuses."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path, advance: Advance = lambda _: None) -> str:
    """The sha256 of the file *path*; *advance* is told the bytes of every block."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            advance(len(block))
    return digest.hexdigest()


def keep_sha256(descriptor: int, sha256: str) -> None:
    """Keep *sha256*, just computed, beside an open file, where the file system can (in an extended attribute)."""
    with suppress(OSError):
        os.setxattr(descriptor, _SHA256_ATTRIBUTE, _statement(os.fstat(descriptor), sha256))


def kept_sha256(path: Path) -> str | None:
    """The sha256 that was kept beside the file *path*; None without one, or if the file changed or is a copy."""
    try:
        kept = os.getxattr(path, _SHA256_ATTRIBUTE)
        sha256 = kept.partition(b" ")[0].decode("ascii", "replace")
        return sha256 if kept == _statement(path.stat(), sha256) else None
    except OSError:
        return None


def _statement(status: os.stat_result, sha256: str) -> bytes:
    return f"{sha256} {status.st_size} {status.st_mtime_ns} {status.st_ino}".encode("ascii", "replace")


def free_bytes(path: Path) -> int:
    """What the file system that *path* will stand on has left for this user."""
    status = os.statvfs(path.absolute().parent)
    return status.f_bavail * status.f_frsize


def read_into(descriptor: int, offset: int, data: memoryview, name: str) -> None:
    """Fill *data* with the bytes from *offset* on of the open file *name*; StorageError where it ends before."""
    while data:
        count = os.preadv(descriptor, [data], offset)
        if not count:
            raise StorageError(f"{name}: became shorter while it was read; start again when it is at rest")
        data, offset = data[count:], offset + count


def ask_for(path: Path, begin: int, size: int) -> None:
    """Have the kernel bring these bytes of the file *path* into the page cache meanwhile; it is advice."""
    with suppress(OSError), path.open("rb", 0) as file:
        os.posix_fadvise(file.fileno(), begin, size, os.POSIX_FADV_WILLNEED)
