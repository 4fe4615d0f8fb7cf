"""A forked child whose system calls that change the disk wait, one by one, for what is decided about each.

The kernel holds such a call and asks (seccomp's user notification, man 2 seccomp_unotify): it may go on, fail with an
error, write half of its data, or the child may be killed at it. The program runs as it is, nothing in it is replaced,
and the calls of all its threads have one order. strace injects errors as well, but counts calls by name and by thread,
and cannot make a short write; it is not needed. Linux on x86-64 alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
PATIENCE = 60.0  # seconds that a child may take

# Where the arguments of a call name a file: ("fd", number), ("path", number) or ("at", number of the directory's).
_FD, _PATH, _AT = "fd", "path", "at"
_CALLS: dict[int, tuple[str, tuple[tuple[str, int], ...]]] = {
    1: ("write", ((_FD, 0),)),
    2: ("open", ((_PATH, 0),)),
    16: ("ioctl", ((_FD, 0),)),
    18: ("pwrite64", ((_FD, 0),)),
    20: ("writev", ((_FD, 0),)),
    40: ("sendfile", ((_FD, 0),)),
    44: ("sendto", ((_FD, 0),)),
    74: ("fsync", ((_FD, 0),)),
    75: ("fdatasync", ((_FD, 0),)),
    76: ("truncate", ((_PATH, 0),)),
    77: ("ftruncate", ((_FD, 0),)),
    82: ("rename", ((_PATH, 0), (_PATH, 1))),
    83: ("mkdir", ((_PATH, 0),)),
    84: ("rmdir", ((_PATH, 0),)),
    85: ("creat", ((_PATH, 0),)),
    86: ("link", ((_PATH, 0), (_PATH, 1))),
    87: ("unlink", ((_PATH, 0),)),
    88: ("symlink", ((_PATH, 1),)),
    90: ("chmod", ((_PATH, 0),)),
    91: ("fchmod", ((_FD, 0),)),
    188: ("setxattr", ((_PATH, 0),)),
    190: ("fsetxattr", ((_FD, 0),)),
    257: ("openat", ((_AT, 0),)),
    258: ("mkdirat", ((_AT, 0),)),
    263: ("unlinkat", ((_AT, 0),)),
    264: ("renameat", ((_AT, 0), (_AT, 2))),
    265: ("linkat", ((_AT, 0), (_AT, 2))),
    266: ("symlinkat", ((_AT, 1),)),
    268: ("fchmodat", ((_AT, 0),)),
    277: ("sync_file_range", ((_FD, 0),)),
    280: ("utimensat", ((_AT, 0),)),
    285: ("fallocate", ((_FD, 0),)),
    296: ("pwritev", ((_FD, 0),)),
    316: ("renameat2", ((_AT, 0), (_AT, 2))),
    326: ("copy_file_range", ((_FD, 2),)),
    328: ("pwritev2", ((_FD, 0),)),
}
_PIDFD_GETFD, _SECCOMP, _SENDTO = 438, 317, 44
_PR_SET_NO_NEW_PRIVS, _SET_MODE_FILTER, _NEW_LISTENER = 38, 1, 8
_ALLOW, _USER_NOTIF = 0x7FFF0000, 0x7FC00000
_RECEIVE, _SEND, _CONTINUE = 0xC0502100, 0xC0182101, 1
_REQUEST, _ANSWER = struct.Struct("=QIIiIQ6Q"), struct.Struct("=QqiI")
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06  # of classic BPF
_FICLONE = 0x40049409
_AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


class Decision(Enum):
    """What becomes of a call, unless it fails with an error, which is given as its number."""

    GO_ON = "goes on"
    HALF = "writes half"
    KILL = "SIGKILL"
    KILL_HALFWAY = "SIGKILL halfway"  # half of the data is written first


@dataclass(frozen=True)
class Call:
    """A system call: its *name*, the *paths* that it is about (the second is the new name of a rename or a link), the
    *offset* and *data* of a write, and the *number* that it has beside: flags, or a size.
    """

    name: str
    paths: tuple[str, ...]
    offset: int | None = None
    data: bytes | None = None
    number: int = 0

    @property
    def can_be_short(self) -> bool:
        """Whether it writes more than a byte."""
        return self.data is not None and len(self.data) > 1


@dataclass(frozen=True)
class Ended:
    """How a child ended: minus the signal that killed it, or its exit code; and what it *called*, in order."""

    exit_code: int
    called: tuple[Call, ...] = field(repr=False)


def supervise(
    work: Callable[[], object],
    within: Path,
    decide: Callable[[int, Call], Decision | int] = lambda index, call: Decision.GO_ON,
    *,
    first: Callable[[], object] = lambda: None,
    sockets: bool = False,
) -> Ended:
    """Let a forked child do *work*, and *decide* about its calls that change the disk *within* a directory.

    *decide* is told how many calls there were before; those of *first* do not count. With *sockets*, what is sent to a
    socket counts as well. The child ends with exit code 0, or what *work* exits with, or 70 if it raises something.
    """
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    assert len(threads) == 1, f"a process with threads cannot be forked safely: {threads}"
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process == 0:
        _be_supervised(first, work, ours, theirs)
    theirs.close()
    try:
        with ours:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        assert descriptors, "the child could not be supervised"
        supervisor = _Supervisor(process, descriptors[0], str(within.absolute()), decide, sockets)
        try:
            supervisor.run()
        finally:
            supervisor.close()
    except BaseException:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        raise
    return Ended(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), tuple(supervisor.called))


def _be_supervised(
    first: Callable[[], object], work: Callable[[], object], ours: socket.socket, theirs: socket.socket
) -> None:
    """What the child does; it never returns."""
    exit_code = 70
    try:
        ours.close()
        first()
        listener = _listen()
        socket.send_fds(theirs, [b"!"], [listener])
        os.close(listener)
        theirs.close()
        work()
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 0
    except BaseException as fault:
        os.write(2, f"{fault!r}\n".encode())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            exit_code = exit_code or 120  # as Python itself does
        os._exit(exit_code)


def _listen() -> int:
    """Let the kernel hold this process's calls from now on; who reads the descriptor decides."""

    def instruction(code: int, then: int, otherwise: int, value: int) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    held, program = instruction(_RETURN, 0, 0, _USER_NOTIF), [instruction(_LOAD, 0, 0, 0)]
    for number, (name, _) in _CALLS.items():
        if name in ("open", "openat", "ioctl"):  # those that may write, and the one that clones
            argument = {"open": 1, "openat": 2, "ioctl": 1}[name]
            test = (_JUMP_IF_EQUAL, _FICLONE)
            if name != "ioctl":
                test = (_JUMP_IF_ANY, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            program += [
                instruction(_JUMP_IF_EQUAL, 0, 4, number),
                instruction(_LOAD, 0, 0, 16 + 8 * argument),
                instruction(test[0], 0, 1, test[1]),
                held,
                instruction(_RETURN, 0, 0, _ALLOW),
            ]
        else:
            program += [instruction(_JUMP_IF_EQUAL, 0, 1, number), held]
    program.append(instruction(_RETURN, 0, 0, _ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    filter_program = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    listener = _libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, filter_program)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


class _Supervisor:
    def __init__(
        self, process: int, listener: int, within: str, decide: Callable[[int, Call], Decision | int], sockets: bool
    ) -> None:
        self._process, self._listener, self._within = process, listener, within
        self._decide, self._sockets = decide, sockets
        self._pidfd = os.pidfd_open(process)
        self._memory = os.open(f"/proc/{process}/mem", os.O_RDONLY)
        self.called: list[Call] = []

    def close(self) -> None:
        for descriptor in (self._listener, self._pidfd, self._memory):
            os.close(descriptor)

    def run(self) -> None:
        """Answer every call, until the child has ended."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        deadline = time.monotonic() + PATIENCE
        while True:
            ready = dict(poll.poll(max(0, 1000 * (deadline - time.monotonic()))))
            if not ready:
                raise TimeoutError(f"the child took longer than {PATIENCE} s; its last call: {self.called[-1:]}")
            if self._pidfd in ready or ready.get(self._listener, 0) & select.POLLHUP:
                return
            request = bytearray(_REQUEST.size)
            try:
                fcntl.ioctl(self._listener, _RECEIVE, request, True)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR):  # the thread has died, or was interrupted
                    continue
                raise
            self._answer(*_REQUEST.unpack(request))

    def _answer(
        self, ticket: int, thread: int, _flags: int, number: int, _arch: int, _at: int, *arguments: int
    ) -> None:
        try:
            call = self._read(thread, number, arguments)
        except FileNotFoundError:  # of /proc: the thread has just died
            return
        decision: Decision | int = Decision.GO_ON
        if call is not None:
            decision = self._decide(len(self.called), call)
            self.called.append(call)
        value = failure = flags = 0
        if decision in (Decision.HALF, Decision.KILL_HALFWAY):
            assert call is not None
            value = self._write_half(call, arguments)
        if decision in (Decision.KILL, Decision.KILL_HALFWAY):
            os.kill(self._process, signal.SIGKILL)
            return
        if decision is Decision.GO_ON:
            flags = _CONTINUE
        elif isinstance(decision, int):
            failure = -decision
            if number == _SENDTO and decision != errno.EINTR:  # a connection that fails does not stay open
                with socket.socket(fileno=self._descriptor(arguments[0])) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
        try:
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(ticket, value, failure, flags))
        except OSError as error:
            if error.errno != errno.ENOENT:  # the thread has died
                raise

    def _read(self, thread: int, number: int, arguments: tuple[int, ...]) -> Call | None:
        """The call, or None where it is about something else than what is watched."""
        name, places = _CALLS[number]
        paths = tuple(self._path(thread, kind, at, arguments) for kind, at in places)
        if name == "sendto" or (name in ("write", "writev") and paths[0].startswith("socket:")):
            if not (self._sockets and paths[0].startswith("socket:")):
                return None
        elif not any(path == self._within or path.startswith(f"{self._within}/") for path in paths):
            return None
        offset, data, value = None, None, 0
        if name == "sendto":
            data = self._bytes(arguments[1], arguments[2])
        elif name in ("write", "pwrite64"):
            data = self._bytes(arguments[1], arguments[2])
            offset = arguments[3] if name == "pwrite64" else self._position(thread, arguments[0])
        elif name == "writev":
            parts = struct.unpack(f"={2 * arguments[2]}Q", self._bytes(arguments[1], 16 * arguments[2]))
            data = b"".join(self._bytes(*part) for part in zip(parts[::2], parts[1::2], strict=True))
            offset = self._position(thread, arguments[0])
        elif name == "copy_file_range":
            begin, offset = (struct.unpack("=q", self._bytes(arguments[at], 8))[0] for at in (1, 3))
            with Path(f"/proc/{thread}/fd/{arguments[0]}").open("rb") as source:
                data = os.pread(source.fileno(), arguments[4], begin)
        elif name in ("truncate", "ftruncate", "open"):
            value = arguments[1]
        elif name in ("openat", "unlinkat"):
            value = arguments[2]
        return Call(name, paths, offset, data, value)

    def _path(self, thread: int, kind: str, at: int, arguments: tuple[int, ...]) -> str:
        if kind == _FD:
            return str(Path(f"/proc/{thread}/fd/{_signed(arguments[at])}").readlink())
        place = at if kind == _PATH else at + 1
        path = self._text(arguments[place]) if arguments[place] else ""
        if path.startswith("/"):
            return os.path.normpath(path)
        directory = _AT_FDCWD if kind == _PATH else _signed(arguments[at])
        link = "cwd" if directory == _AT_FDCWD else f"fd/{directory}"
        return os.path.normpath(Path(f"/proc/{thread}/{link}").readlink() / path)

    def _position(self, thread: int, descriptor: int) -> int:
        text = Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text()
        return int(text.partition("pos:")[2].split()[0])

    def _bytes(self, address: int, size: int) -> bytes:
        return os.pread(self._memory, size, address)

    def _text(self, address: int) -> str:
        text = b""
        while b"\0" not in text:
            text += self._bytes(address + len(text), 4096 - (address + len(text)) % 4096)
        return os.fsdecode(text.partition(b"\0")[0])

    def _write_half(self, call: Call, arguments: tuple[int, ...]) -> int:
        """Write the first half of the call's data as the call itself would, its file's position included."""
        assert call.data is not None
        half = call.data[: len(call.data) // 2]
        place = 2 if call.name == "copy_file_range" else 0
        target = self._descriptor(arguments[place])
        try:
            if call.name in ("write", "writev", "sendto"):
                return os.write(target, half)
            assert call.offset is not None
            return os.pwrite(target, half, call.offset)
        finally:
            os.close(target)

    def _descriptor(self, number: int) -> int:
        """The child's descriptor of that *number*, here."""
        descriptor = _libc.syscall(_PIDFD_GETFD, self._pidfd, _signed(number), 0)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        return int(descriptor)


def _signed(value: int) -> int:
    """The C int in the low half of *value*."""
    number: int = ctypes.c_int(value & 0xFFFFFFFF).value
    return number
