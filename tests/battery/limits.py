"""A command at its limits: of memory, files, names, streams, permissions and room, each in a process of its own.

Each case either writes the output of an undisturbed run, byte for byte, or refuses in one line with a documented exit
code, and leaves nothing.
"""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.command_line import COMMAND, ERROR
from tests.support.disk import digests, snapshot
from tests.support.synthetic import Spec, write_checkpoint

LARGE = Spec(
    num_layers=4,
    num_kv_heads=16,
    head_dim=64,
    hidden_size=1024,
    intermediate_size=2816,
    vocab_size=2000,
    num_shards=3,
)
# The space check must not answer in the disk's stead.
BLIND = (
    sys.executable,
    "-c",
    "import pytest, s4convert.cli as cli; from tests.support import seams;"
    "seams.believe_there_is_space(pytest.MonkeyPatch()); cli.main()",
)
_ROOT = Path(__file__).parents[2]
_KEPT = {"README.md", "s4convert.json"}  # which name IN and the mask's file, and have figures
_NAMES = ("two words", "two\nlines", "größe 模型 🦙", "x" * 200, "-o", "a'b\"c$d\\e", ".hidden")


@dataclass(frozen=True)
class Outcome:
    """What a case came to: its *name*, whether the output was *written* (or refused), and what of it was *broken*."""

    name: str
    written: bool
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """How a case ended: exit code, stderr, and the directory of *work* with what is in it."""

    exit_code: int
    stderr: str
    work: Path

    @property
    def out(self) -> Path:
        return self.work / "out"


class Limits:
    """The cases, over the inputs in *top*."""

    def __init__(self, top: Path) -> None:
        self._top, self._inputs, self._small = top, top / "inputs", top / "inputs" / "small"
        self._large = write_checkpoint(top / "large", LARGE)
        self._expected: dict[str, dict[str, str]] = {}
        self._sizes: list[int] = []  # of the files of the last one

    def outcomes(self) -> Iterator[Outcome]:
        """Every case, one after the other."""
        yield from self._memory_and_files()
        yield from self._home()
        yield from self._names()
        yield from self._streams()
        yield from self._modes()
        yield from self._places()
        yield from self._room()

    # --- the cases ------------------------------------------------------------------------------------------------

    def _memory_and_files(self) -> Iterator[Outcome]:
        many = write_checkpoint(self._top / "many", Spec(num_layers=20, num_kv_heads=4, num_shards=90))
        gib = 1 << 30
        limit = _limited(resource.RLIMIT_AS, 4 * gib)
        yield self._writes("4 GB of address space", self._run(self._large, first=limit), source=self._large)
        run = self._run(self._inputs / "torch", first=limit)
        yield self._writes("4 GB of address space, .bin", run, source=self._inputs / "torch")
        run = self._run(many, "--jobs", "8", first=_limited(resource.RLIMIT_NOFILE, 64))
        yield self._writes("64 open files, 90 shards, 8 jobs", run, source=many)
        run = self._run(self._large, first=_limited(resource.RLIMIT_FSIZE, 1 << 20))
        yield self._refuses("files of at most 1 MB", run, 3, "File too large")

    def _home(self) -> Iterator[Outcome]:
        mini, mask = self._inputs / "mini", "mini-mask.json"
        nowhere = {"HOME": "/proc", "HF_HOME": None, "XDG_CACHE_HOME": None, "TMPDIR": None}
        for name, environment in (("a read-only home", nowhere), ("no HOME", nowhere | {"HOME": None})):
            run = self._run(mini, mask=mask, environment=environment, verified=True)
            yield self._writes(f"{name}, hidden states", run, source=mini, mask=mask, but=_KEPT)

    def _names(self) -> Iterator[Outcome]:
        for name in _NAMES:
            place = self._new_work() / name
            place.mkdir()
            source = Path(shutil.copytree(self._inputs / "small", place / f"in {name}"[:200]))
            mask = Path(shutil.copy(self._inputs / "mask.json", place / f"{name[:190]}.json"))
            out = place / name
            run = self._start(["--mask", mask, "--no-verify", "-q", "--", source, out], work=place)
            beside = {source.name, mask.name}
            yield self._writes(f"paths named {name[:20]!r}", run, out=out, beside=beside, but=_KEPT)

    def _streams(self) -> Iterator[Outcome]:
        for name, redirected in (("stdin closed", "<&-"), ("all streams closed", "<&- >&- 2>&-")):
            run = self._run(self._small, command=("sh", "-c", f'exec "$@" {redirected}', "sh", *COMMAND))
            yield self._writes(name, run)
        run = self._run(self._small, command=("sh", "-c", 'exec "$@" >&-', "sh", *COMMAND))
        yield self._writes("stdout closed", run, codes=(0, 3))
        script = 'set -o pipefail; "$@" | true'
        run = self._run(self._small, command=("bash", "-c", script, "sh", *COMMAND), quiet=False)
        yield self._writes("stdout a closed pipe", run, codes=(0, 3))
        run = self._run(self._small, command=("sh", "-c", 'exec "$@" >/dev/full', "sh", *COMMAND))
        yield self._writes("stdout a full disk", run, codes=(3,))

    def _modes(self) -> Iterator[Outcome]:
        for umask in (0o077, 0o027):
            run = self._run(self._small, first=lambda umask=umask: os.umask(umask))
            found = {stat.S_IMODE(path.stat().st_mode) for path in run.out.rglob("*") if path.is_file()}
            wrong = () if found == {0o666 & ~umask} else (f"umask {umask:03o}: modes {sorted(map(oct, found))}",)
            done = self._writes(f"umask {umask:03o}", run)
            yield replace(done, broken=(*done.broken, *wrong))

    def _places(self) -> Iterator[Outcome]:
        gone = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
        run = self._run(self._small, out="out", command=("sh", "-c", gone, "sh", *COMMAND))
        yield self._refuses("a deleted working directory", run, (2, 3), "irectory")
        for place in ("/dev/shm", "/tmp", "/var/tmp"):
            if Path(place).stat().st_dev != self._top.stat().st_dev:
                with tempfile.TemporaryDirectory(dir=place) as other:
                    run = self._start(self._arguments(self._small, Path(other) / "out"), work=Path(other))
                    yield self._writes("OUT on another file system", run)
                break
        work = self._new_work()
        (work / "real").mkdir()
        (work / "link").symlink_to("real")
        run = self._start(self._arguments(self._small, work / "link"), work=work)
        yield self._refuses("OUT a symbolic link", run, 2, "is a symbolic link", beside={"link", "real"})
        run = self._start(self._arguments(self._small, work / "link" / "out"), work=work / "real")
        yield self._writes("OUT in a directory by a symbolic link", run)
        yield self._from_a_hub_cache(self._small)

    def _from_a_hub_cache(self, checkpoint: Path) -> Outcome:
        """IN is what the Hub's client keeps: relative links to blobs that are named by their hashes."""
        cache = self._new_work()
        for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
            blob = cache / "models--lab--small" / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            link = cache / "models--lab--small" / "snapshots" / "main" / path.relative_to(checkpoint)
            for directory in (blob.parent, link.parent):
                directory.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            blob.chmod(0o444)
            link.symlink_to(os.path.relpath(blob, link.parent))
        before, links = snapshot(cache), cache / "models--lab--small" / "snapshots" / "main"
        run = self._start(self._arguments(links, cache / "out"), work=cache)
        done = self._writes("IN of links into a Hub cache", run, beside={"models--lab--small"}, but=_KEPT)
        shutil.rmtree(cache / "out", ignore_errors=True)
        spoiled = () if snapshot(cache) == before else ("the cache was changed",)
        return replace(done, broken=(*done.broken, *spoiled))

    def _room(self) -> Iterator[Outcome]:
        """A tmpfs with so many pages less than OUT takes."""
        self._expected.clear()
        self._expected_of(self._large, "mask.json")
        pages = sum(-(-size // 4096) for size in self._sizes)
        for missing in (0, 1, 2, 5, 50, 500, pages - 1):
            name = f"a disk with {missing} pages too few" if missing else "a disk with room to the page"
            with tempfile.TemporaryDirectory(dir=self._top) as disk:
                options = f"size={4096 * (pages - missing)}"
                mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True)
                if mount.returncode:
                    return  # only who may mount can try
                try:
                    run = self._start(self._arguments(self._large, Path(disk) / "out"), work=Path(disk), command=BLIND)
                    if missing:
                        yield self._refuses(name, run, 3, "No space left on device")
                    else:
                        yield self._writes(name, run, source=self._large)
                finally:
                    subprocess.run(["umount", disk], check=True)

    # --- running and looking --------------------------------------------------------------------------------------

    def _new_work(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._top))

    def _arguments(
        self, source: Path, out: Path | str, *more: str, mask: str = "mask.json", verified: bool = False
    ) -> list[object]:
        given = () if verified else ("--no-verify",)
        return [source, out, "--mask", self._inputs / mask, "-q", *given, *more]

    def _run(
        self,
        source: Path,
        *more: str,
        out: str | None = None,
        mask: str = "mask.json",
        verified: bool = False,
        quiet: bool = True,
        **how: Any,
    ) -> Run:
        work = self._new_work()
        arguments = self._arguments(source, out or work / "out", *more, mask=mask, verified=verified)
        if not quiet:
            arguments.remove("-q")
        return self._start(arguments, work=work, **how)

    def _start(
        self,
        arguments: Sequence[object],
        *,
        work: Path,
        command: Sequence[str] = COMMAND,
        first: Callable[[], object] | None = None,
        environment: Mapping[str, str | None] | None = None,
    ) -> Run:
        changed = {**os.environ, "PYTHONPATH": str(_ROOT), **(environment or {})}
        ended = subprocess.run(
            [*command, *map(str, arguments)],
            cwd=work,
            env={name: value for name, value in changed.items() if value is not None},
            preexec_fn=first,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=300,
        )
        return Run(ended.returncode, ended.stderr.decode(errors="replace"), work)

    def _expected_of(self, source: Path, mask: str) -> dict[str, str]:
        key = f"{source} {mask}"
        if key not in self._expected:
            out = self._new_work() / "out"
            subprocess.run(
                [*COMMAND, *map(str, self._arguments(source, out, mask=mask))], check=True, capture_output=True
            )
            self._expected[key] = digests(out)
            self._sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
        return self._expected[key]

    def _writes(
        self,
        name: str,
        run: Run,
        *,
        source: Path | None = None,
        mask: str = "mask.json",
        out: Path | None = None,
        codes: tuple[int, ...] = (0,),
        beside: Collection[str] = (),
        but: Collection[str] = (),
    ) -> Outcome:
        """The case in which OUT is what an undisturbed run writes."""
        broken = []
        expected, found = self._expected_of(source or self._small, mask), digests(out or run.out)
        differs = sorted(file for file in expected.keys() | found if expected.get(file) != found.get(file))
        if run.exit_code not in codes:
            broken.append(f"exit code {run.exit_code}: {run.stderr.strip()[-300:]}")
        if set(differs).difference(but):
            broken.append(f"other bytes in {differs}")
        broken += self._traces(run, {(out or run.out).name, *beside})
        return Outcome(name, True, tuple(f"{name}: {what}" for what in broken))

    def _refuses(
        self,
        name: str,
        run: Run,
        codes: int | tuple[int, ...],
        message: str,
        *,
        beside: Collection[str] = (),
    ) -> Outcome:
        """The case in which OUT does not appear."""
        broken = []
        if run.exit_code not in ((codes,) if isinstance(codes, int) else codes):
            broken.append(f"exit code {run.exit_code}: {run.stderr.strip()[-300:]}")
        last = run.stderr.strip().splitlines()[-1:]
        if not last or not last[0].startswith(ERROR) or message not in last[0]:
            broken.append(f"says {last}")
        broken += self._traces(run, beside)
        return Outcome(name, False, tuple(f"{name}: {what}" for what in broken))

    @staticmethod
    def _traces(run: Run, beside: Collection[str]) -> Iterator[str]:
        if "Traceback" in run.stderr:
            yield f"a traceback: {run.stderr.strip()[-300:]}"
        if left := sorted(set(os.listdir(run.work)).difference(beside)):
            yield f"left {left}"


def _limited(which: int, most: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(which, (most, most))
