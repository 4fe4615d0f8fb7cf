"""Where the unfinished output lives, and how it becomes OUT in one step.

Beside OUT stand, while a conversion runs, ``.OUT.s4convert-lock`` (held with ``flock``, which the kernel lets
go of when the process dies, however it dies) and ``.OUT.s4convert-staging``, with the unfinished checkpoint in it and
the scratch of fits. Nothing is ever written under OUT itself: the staged checkpoint is renamed to it when it is
whole, verified and on the disk. With ``--force`` the directory that stood there is first renamed to
``.OUT.s4convert-replaced``, and put back if the process dies before the new one is in its place. It is deleted from
within the staging directory: under that first name, a half of it could be put back.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from ..checkpoint import MANIFEST_FILE, Checkpoint, read_json_object
from ..checkpoint.checkpoint import FileStamp
from ..disk import free_bytes, kept_sha256, sha256_of, sync, walk
from ..errors import S4ConvertError, StorageError, UsageError, reading

_log = logging.getLogger(__name__)

# Ctrl-C, kill, and a terminal or ssh connection that goes away.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Room for what is written beside the copied files: the manifest and file-system metadata.
SPARE_BYTES = 8 << 20


@dataclass(frozen=True)
class Staging:
    """The hidden siblings of OUT that a conversion works in."""

    out: Path

    @property
    def directory(self) -> Path:
        """All that is unfinished."""
        return self._sibling("staging")

    @property
    def checkpoint(self) -> Path:
        """The unfinished output."""
        return self.directory / "checkpoint"

    @property
    def scratch(self) -> Path:
        """What fits keep while they are needed."""
        return self.directory / "scratch"

    @property
    def replaced(self) -> Path:
        """The directory that stood at OUT, between its removal and the new one's arrival."""
        return self._sibling("replaced")

    @property
    def discarded(self) -> Path:
        """The same, when the new one has arrived."""
        return self.directory / "discarded"

    @property
    def lock(self) -> Path:
        return self._sibling("lock")

    def _sibling(self, role: str) -> Path:
        return self.out.with_name(f".{self.out.name}.s4convert-{role}")


def check_destination(checkpoint: Checkpoint, out: Path, num_bytes: int) -> None:
    """Refuse, before the first byte, an OUT that would harm IN or other files, or *num_bytes* that find no room.

    Raises:
        UsageError: OUT is IN, inside it or around it, or a link.
        StorageError: the parent directory is missing, read-only or has too little space.
    """
    source, destination = checkpoint.path.resolve(), out.resolve()
    if out.name in ("", "..") or destination == Path.cwd():
        raise UsageError(f"{out}: is the current directory, or one above it; name a new one for OUT")
    if source == destination or (out.exists() and out.samefile(source)):
        raise UsageError(f"{out}: is IN itself; IN is never written to, choose another OUT")
    if source in destination.parents:
        raise UsageError(f"{out}: lies inside IN; choose an OUT elsewhere")
    if destination in source.parents:
        raise UsageError(f"{out}: IN lies inside it; choose an OUT elsewhere")
    if out.is_symlink():
        raise UsageError(f"{out}: is a symbolic link; give the real directory, or another OUT")
    staging = Staging(destination)
    if {staging.directory, staging.replaced} & {source, *source.parents}:
        raise UsageError(f"{checkpoint.path}: is where a conversion to {out} works; choose another OUT")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise StorageError(f"{parent}: no such directory; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"{parent}: no permission to write there; choose another OUT")
    check_space(out, num_bytes)


def check_space(path: Path, num_bytes: int) -> None:
    """Raise StorageError where *num_bytes* find no room where *path* will stand."""
    free = free_bytes(path)
    if num_bytes > free:
        raise StorageError(
            f"{path.absolute().parent}: {num_bytes:,} bytes are needed and {free:,} are free; make room for "
            f"{num_bytes - free:,} more"
        )


def check_replaceable(out: Path, *, force: bool) -> Mapping[str, FileStamp]:
    """Refuse an OUT at which something stands that is not to be replaced; the result is what stands there.

    Raises:
        UsageError: it is no directory or a mount point; or *force* is off and it is not empty; or there is more in it
            than a conversion wrote, or something else, which would be lost.
        StorageError: it cannot be read.
    """
    if not out.exists():
        return {}
    if not out.is_dir():
        raise UsageError(f"{out}: is a file; choose another OUT")
    if out.is_mount():
        raise UsageError(f"{out}: is a mount point, which nothing can take the place of; choose an OUT inside it")
    standing = _stamps(out)
    if not standing:
        return {}
    if not force:
        raise UsageError(f"{out}: is not empty; choose another OUT, or replace it with `force=True`")
    _check_written_by_us(out, standing)
    return standing


def _stamps(directory: Path) -> dict[str, FileStamp]:
    """The stamps of all that stands in *directory*, links not followed; StorageError where it cannot be read."""
    with reading(directory):
        return {name: FileStamp.from_status((directory / name).lstat()) for name in walk(directory)}


def _check_written_by_us(out: Path, names: Collection[str]) -> None:
    """Refuse an OUT in which one of *names* is not what its own manifest says."""
    try:
        files = read_json_object(out / MANIFEST_FILE)["files"]
        written = {name: (file["size"], file["sha256"]) for name, file in files.items()}
    except (S4ConvertError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{out}: holds something else than a conversion, so `force=True` will not replace it"
        ) from error
    with reading(out):
        for name in names:
            if name == MANIFEST_FILE or name.endswith("/"):  # nothing is lost with an empty directory
                continue
            path = out / name
            if name not in written:
                raise UsageError(f"{path}: was not written by a conversion and would be lost; move it elsewhere")
            size, sha256 = written[name]
            if path.stat().st_size != size or sha256 != (kept_sha256(path) or sha256_of(path)):
                raise UsageError(
                    f"{path}: was changed after it was converted and would be lost; move {out} elsewhere, or remove it"
                )


@contextmanager
def open_staging(out: Path) -> Iterator[Staging]:
    """Hold OUT's lock and an empty staging directory; on the way out what was not committed is removed.

    What a killed conversion to the same OUT has left is cleared up first.

    Raises:
        StorageError: another conversion to the same OUT is running, or the directory cannot be made.
    """
    staging = Staging(out.absolute())
    descriptor = None
    try:
        with _held_back():
            try:
                descriptor = _take_lock(staging)
            except OSError as error:
                raise StorageError(f"{staging.lock}: cannot be locked: {error.strerror}") from error
        _recover(staging)
        for directory in (staging.directory, staging.checkpoint, staging.scratch):
            directory.mkdir()
        yield staging
    except OSError as error:
        where = error.filename or staging.directory
        raise StorageError(f"{where}: {error.strerror or error}; OUT is as it was") from error
    finally:
        if descriptor is not None:
            with _uninterrupted():
                _remove(staging.directory)
                with _warning(staging.lock):
                    staging.lock.unlink(missing_ok=True)
                os.close(descriptor)


def commit(staging: Staging, *, replace: Mapping[str, FileStamp] | None) -> None:
    """Put the staged directory in OUT's place; its files are on the disk already.

    *replace* is what :func:`check_replaceable` saw at OUT, and may be replaced; None where nothing may.

    Raises:
        UsageError: what stands at OUT is not that any more.
        StorageError: OUT is whole, but may not last; or what stood there could not be put back. The message says so.
        OSError: the disk refused, or something was put at OUT during the run and may not be replaced; OUT is as it was.
    """
    out = staging.out
    _sync_directories(staging.checkpoint)
    with _uninterrupted():  # an interrupt must not deny that OUT stands
        _remove(staging.scratch)  # later, it would outlive a kill behind the renaming
        is_moved = False
        try:
            if replace is not None and out.exists():
                if _stamps(out) != replace:
                    raise UsageError(f"{out}: changed during the run, so `force=True` will not replace it; look at it")
                out.rename(staging.replaced)
                is_moved = True
            staging.checkpoint.rename(out)  # takes the place of an empty directory, and fails on any other
        except BaseException:
            if is_moved and not os.path.lexists(out):
                _put_back(staging)
            raise
        # OUT stands: from here on, an error would deny it.
        try:
            sync(out.parent)
        except OSError as error:
            old = f", and remove {staging.replaced}, which stood there before" if is_moved else ""
            raise StorageError(
                f"{out}: is whole, but may not outlive a power cut: {error.strerror}; run sync{old}"
            ) from error
        if is_moved:
            _discard(staging)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Pay no heed to signals that end the program: what is going on takes a moment and must not be cut in two."""
    with _answered_by(signal.SIG_IGN):
        yield


@contextmanager
def _held_back() -> Iterator[None]:
    """Let signals that end the program wait: what is going on takes a moment, and cannot be undone when half done."""
    came: list[int] = []
    try:
        with _answered_by(lambda number, _: came.append(number)):
            yield
    finally:
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _answered_by(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Let *handler* have the signals that end the program; only the main thread hears any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)


def _put_back(staging: Staging) -> None:
    """Rename what stood at OUT to OUT; StorageError where the disk refuses."""
    try:
        staging.replaced.rename(staging.out)
    except OSError as error:
        raise StorageError(
            f"{staging.replaced}: is what stood at OUT, and cannot be put back: {error.strerror}; nothing is at OUT "
            "until you rename it, or the next run to the same OUT puts it back"
        ) from error


def _discard(staging: Staging) -> None:
    """Remove what stood at OUT, under a name that is never put back: a kill may cut the removal in two."""
    with _warning(staging.replaced):
        staging.replaced.rename(staging.discarded)
        _remove(staging.discarded)


def _remove(directory: Path) -> None:
    """Remove *directory*; what cannot be removed is named, because it may be as large as a checkpoint."""
    with _warning(directory):
        shutil.rmtree(directory, ignore_errors=True)
        if directory.exists():
            _log.warning("%s: cannot be removed; remove it yourself", directory)


@contextmanager
def _warning(path: Path) -> Iterator[None]:
    """Where *path* cannot be removed, say so and go on: an error would hide how the conversion itself has ended."""
    try:
        yield
    except OSError as error:
        _log.warning("%s: cannot be removed: %s; remove it yourself", path, error.strerror)


def _sync_directories(top: Path) -> None:
    """Bring the entries of *top* and of every directory in it to the disk."""
    for folder in sorted({folder for name in walk(top) for folder in Path(name).parents}):
        sync(top / folder)


def _take_lock(staging: Staging) -> int:
    while True:
        descriptor = os.open(staging.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StorageError(f"{staging.out}: another s4convert is writing it; wait for that one") from error
        # The owner before us may have removed the file between our open and our lock; then it locks nothing.
        try:
            if os.path.samestat(os.fstat(descriptor), staging.lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _recover(staging: Staging) -> None:
    """Clear up after a conversion to the same OUT that was killed; the lock says that it is dead."""
    if staging.replaced.exists():
        if (staging.out / MANIFEST_FILE).is_file():  # the new one is in its place
            staging.directory.mkdir(exist_ok=True)
            _discard(staging)
        elif not staging.out.exists() or not any(staging.out.iterdir()):
            _put_back(staging)
            _log.warning("%s: put back; a conversion that should replace it was killed", staging.out)
        else:
            raise StorageError(
                f"{staging.replaced}: is what stood at OUT before a conversion was killed; move it, or what stands "
                "at OUT now"
            )
    if staging.directory.exists():
        shutil.rmtree(staging.directory)
        _log.warning("%s: removed; a conversion that was killed had left it", staging.directory)
