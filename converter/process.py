"""What makes a command a good citizen of a shell: messages, signals, exit codes, and the words for its flags."""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from .errors import S4ConvertError, StorageError, printable, text_of
from .hub.client import interruptible
from .redaction import RedactingFormatter, redact

EXIT_USAGE, EXIT_STORAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 3, 70, 130

_OBJECTS = 200_000  # new ones between two looks for garbage
_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
_PARAMETER = re.compile(r"`([a-z_]+)(?:=([^`]+))?`")


def set_up(group: click.Group, verbose: int, *, quiet: bool) -> None:
    """Messages to stderr, one line each; SIGTERM and a connection that goes away clean up as Ctrl-C does.

    Raises:
        StorageError: the working directory was deleted; torch, for one, ends the process there without a word of ours.
    """
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithFlags(group))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    logging.raiseExceptions = False  # a stderr that takes no message would get a traceback in its place
    logging.getLogger(__package__).setLevel(level)
    try:
        Path.cwd()
    except OSError as error:
        raise StorageError(
            f"the working directory cannot be found: {error.strerror}; change to one that stands"
        ) from error
    if quiet:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # which the client looks at when it is imported
    if verbose > 1:
        os.environ["HF_HUB_VERBOSITY"] = "debug"
        for library in _HTTP_LIBRARIES:
            logging.getLogger(library).setLevel(logging.DEBUG)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, _interrupt)
    interruptible.set(_ending_at_once)
    # To import torch and transformers makes a million objects and no garbage, and looking for some takes a third of the
    # time; so does looking through all of them once more at the exit.
    gc.set_threshold(_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def run(group: click.Group, arguments: list[str]) -> NoReturn:
    """Run *group* with *arguments*; every error is one line on stderr and an exit code."""
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks
    try:
        # Not group.main(): it ends a broken pipe with 1, which means a failed verification here.
        with group.make_context("s4convert", arguments) as context:
            group.invoke(context)
    except S4ConvertError as error:
        _fail(str(error), error.exit_code, debug, group)
    except click.ClickException as error:
        message = re.sub(r"(?<!\.)\.$", "", error.format_message())  # but "bands:..." may be a user's
        _fail(f"{message}; see {_help_of(getattr(error, 'ctx', None))}", EXIT_USAGE, debug, group)
    except click.exceptions.Exit as done:  # --help and --version
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, click.Abort):
        # Where an interrupt came out of an exec of text, as in the making of a data class, Python would end itself by
        # SIGINT, whatever the exit code; the next exec makes it forget.
        exec("")
        _fail("interrupted", EXIT_INTERRUPTED, debug, group)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(EXIT_STORAGE)
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        text = f"not enough memory{reason}; free some, use a larger machine, or run again with --debug to see for what"
        _fail(text, EXIT_STORAGE, debug, group)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", EXIT_STORAGE, debug, group)
    except Exception as error:  # a fault of ours: still one line, and the way to the traceback
        text = f"internal error: {type(error).__name__}: {error}; run again with --debug and report it"
        _fail(text, EXIT_INTERNAL, debug, group)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the work is done, and the exit code is to say so
    sys.exit(0)


def print_result(text: str, *, written: object) -> None:
    """Print *text* about the output *written*.

    Raises:
        StorageError: stdout cannot be written to.
    """
    try:
        click.echo(text)
    except OSError as error:
        _discard_stdout()
        raise StorageError(f"{written}: is written, but its report cannot be printed: {error.strerror}") from error


def with_flags(text: str, group: click.Group) -> str:
    """*text* with the flags of *group*'s commands where the library names its parameters, in backticks."""
    flags: dict[str, click.Option] = {}
    for command in group.commands.values():
        flags |= {option.name or "": option for option in command.params if isinstance(option, click.Option)}

    def flag(match: re.Match[str]) -> str:
        option = flags.get(match[1])
        if option is None:
            return match[0]
        name = max(option.opts, key=len)
        return name if match[2] is None or option.is_flag else f"{name} {match[2].strip(chr(39))}"

    return _PARAMETER.sub(flag, text)


class _WithFlags(RedactingFormatter):
    """A formatter of messages that names flags where the library names its parameters."""

    def __init__(self, group: click.Group) -> None:
        super().__init__("s4convert: %(message)s")
        self._group = group

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return with_flags(super().formatMessage(record), self._group)

    def format(self, record: logging.LogRecord) -> str:
        return text_of(super().format(record).split("\n"))


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _ending_at_once(then: str) -> Iterator[None]:
    """An interrupt ends the process on the spot: for work that leaves nothing half-written.

    *then* says how things stand.
    """

    def end(signal_number: int, frame: object) -> NoReturn:
        with contextlib.suppress(OSError):
            os.write(2, f"s4convert: error: interrupted; {printable(then)}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if handlers[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _help_of(context: click.Context | None) -> str:
    """The help that is about *context*'s command; that of the main job, which has no name, is the group's."""
    if context is None or context.command.hidden:
        return "s4convert --help"
    return f"{context.command_path} --help"


def _fail(message: str, exit_code: int, debug: bool, group: click.Group) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr may be closed or full; the exit code says what happened
        if debug:
            click.echo(text_of(redact(traceback.format_exc()).splitlines()), err=True)
        line = printable(" ".join(message.split()))
        click.echo(f"s4convert: error: {redact(with_flags(line, group))}", err=True)
    sys.exit(exit_code)


def _discard_stdout() -> None:
    """Whoever read our output has gone, or has no room: what Python still holds of it must not fail at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
