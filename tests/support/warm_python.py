"""A ``python`` that has imported torch, transformers and the package before it is started.

A fresh process takes seconds for that. Here one process does it once, and forks a child for each command, which runs
where it was called: in its directory, with its environment and its streams. Use it where a test needs a process, and
not a fresh one; ``s4convert`` is there as well.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.support.command_line import ROOT

# What stands on PATH: it hands over all that a process is started with, and ends with the exit code that comes back.
COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([{before!r} + sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    sys.exit(int(server.recv(8)))
"""

# A process with threads must not fork: neither the one here, nor a command in it that forks in its turn.
NO_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@cache
def warm_commands() -> Path:
    """A directory to put on PATH, with ``python`` (for ``-c CODE``, ``-m MODULE`` or a script) and ``s4convert``.

    The process behind them is started by the first call, and ends with this process.
    """
    directory = Path(tempfile.mkdtemp())
    address = str(directory / "socket")
    for command, before in (("python", []), ("s4convert", ["-m", "s4convert"])):
        path = directory / command
        path.write_text(COMMAND.format(python=sys.executable, address=address, before=before))
        path.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.warm_python", address],
        cwd=ROOT,
        env=os.environ | NO_THREADS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def end() -> None:
        process.communicate()  # it ends when its stdin does
        shutil.rmtree(directory)

    atexit.register(end)
    assert process.stdout is not None
    assert process.stdout.readline() == b"warm\n"
    return directory


def warm(command: str) -> str:
    """The path of ``python`` or ``s4convert`` in :func:`warm_commands`."""
    return str(warm_commands() / command)


def import_everything() -> None:
    """By a conversion with all its checks, and by asking what it made."""
    from s4convert import demonstrate

    scratch = Path(tempfile.mkdtemp())
    demonstrate(scratch / "demo")
    shutil.rmtree(scratch)


def serve(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        os.write(1, b"warm\n")
        while server in select.select([server, sys.stdin], [], [])[0]:
            connection, _ = server.accept()
            with connection:
                length, streams, _, _ = socket.recv_fds(connection, 4, 3)
                request = connection.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
                threads = os.listdir("/proc/self/task")
                assert len(threads) == 1, threads
                child = os.fork()
                if child == 0:
                    run(*json.loads(request), streams)
                for stream in streams:
                    os.close(stream)
                connection.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def run(arguments: list[str], directory: str, environment: dict[str, str], streams: list[int]) -> None:
    """Do what ``python *arguments`` does, and end the process."""
    exit_code: object = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode, closefd=False) for number, mode in enumerate("rww")
        )
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment | NO_THREADS)
        match arguments:
            case ["-m", module, *rest]:
                sys.argv = ["-m", *rest]
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            case ["-c", code, *rest]:
                sys.argv = ["-c", *rest]
                exec(code, {"__name__": "__main__"})
            case [script, *_]:
                sys.argv = arguments
                runpy.run_path(script, run_name="__main__")
        exit_code = 0
    except SystemExit as end:
        exit_code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code if isinstance(exit_code, int) else 1)


if __name__ == "__main__":
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # it would start a thread
    import_everything()
    serve(sys.argv[1])
    gc.freeze()  # or Python would look through all of torch before it ends
