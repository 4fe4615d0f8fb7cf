"""Power loss: what a disk may hold if the power goes, worked out from the calls that a command made.

A small model of a disk knows which writes and names must be there (a fsync of the file, or of the directory, came after
them) and which may be: of those, any may be missing, in any combination, and a write may be cut in two. It takes no
order for granted, so it is harsher than the journal of ext4 or XFS. After each call the power goes in several ways, and
what stands at the output must be nothing, or all of it, or the old one; some of these disks are laid out, and the
command is run again on them.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.battery.commands import Command
from tests.battery.faults import (
    ABSENT,
    OLD,
    WHOLE,
    Undisturbed,
    broken_by_the_next_run,
    name_of_state,
    run_undisturbed,
)
from tests.support.system_calls import Call

SECTOR = 512
ROOT = 0  # the number of the directory at the top


@dataclass(frozen=True)
class Content:
    """A change of a file: *data* at *offset*, or, without data, the new size *offset*."""

    file: int
    offset: int
    data: bytes | None


@dataclass(frozen=True)
class Name:
    """A change of names: *new* comes to be, and *old* ceases to be; each is (directory, name)."""

    inode: int
    new: tuple[int, str] | None = None
    old: tuple[int, str] | None = None

    def is_in(self, directory: int) -> bool:
        return any(place is not None and place[0] == directory for place in (self.new, self.old))


Change = Content | Name
Keep = Callable[[Change], Change | None]


@dataclass
class Tree:
    """What a disk holds: *names* of directories, and *contents* of files, by number."""

    names: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    contents: dict[int, bytearray] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        if isinstance(change, Content):
            content = self.contents.setdefault(change.file, bytearray())
            if change.data is None:
                del content[change.offset :]
                content.extend(bytes(change.offset - len(content)))
            else:
                content.extend(bytes(max(0, change.offset - len(content))))
                content[change.offset : change.offset + len(change.data)] = change.data
            return
        if change.old is not None:
            directory, name = change.old
            if self.names[directory].get(name) == change.inode:
                del self.names[directory][name]
        if change.new is not None:
            directory, name = change.new
            self.names[directory][name] = change.inode

    def find(self, path: str) -> int | None:
        number: int | None = ROOT
        for part in Path(path).parts:
            number = self.names.get(number, {}).get(part) if number is not None else None
        return number

    def copy(self) -> Tree:
        return Tree(
            {number: dict(names) for number, names in self.names.items()},
            {number: bytearray(content) for number, content in self.contents.items()},
        )

    def digest(self, number: int = ROOT) -> bytes:
        """A hash of what the directory of that *number* holds."""
        found = hashlib.sha256()
        for name, inode in sorted(self.names[number].items()):
            is_directory = inode in self.names
            found.update(repr((name, is_directory)).encode())
            content = self.digest(inode) if is_directory else self.contents.get(inode, b"")
            found.update(hashlib.sha256(content).digest())
        return found.digest()

    def lay_out(self, directory: Path, number: int = ROOT) -> None:
        """Write what the directory of that *number* holds into the new *directory*."""
        directory.mkdir()
        for name, inode in self.names[number].items():
            if inode in self.names:
                self.lay_out(directory / name, inode)
            else:
                (directory / name).write_bytes(self.contents.get(inode, b""))


class Disk:
    """A directory on a disk: what must be there, and what may be."""

    def __init__(self, top: Path) -> None:
        self._top = f"{top}/"
        self.safe, self.pending = Tree(), list[Change]()
        self._now = Tree()
        self._next = ROOT + 1
        self._read(top, ROOT)
        self.safe = self._now.copy()

    def take(self, call: Call) -> None:
        """Do what the *call* does."""
        paths = [path.removesuffix(" (deleted)").removeprefix(self._top) for path in call.paths]
        if call.paths[0] == self._top[:-1]:
            paths[0] = ""
        elif not call.paths[0].startswith(self._top):
            return
        inode, place = self._now.find(paths[0]), self._place(paths[0])
        match call.name:
            case "open" | "openat" | "creat":
                if inode is None and place is not None:
                    self._change(Name(self._new(), new=place))
                elif inode is not None and call.number & os.O_TRUNC:
                    self._change(Content(inode, 0, None))
            case "mkdir" | "mkdirat":
                if inode is None and place is not None:
                    number = self._new()
                    for tree in (self._now, self.safe):
                        tree.names[number] = {}
                    self._change(Name(number, new=place))
            case "unlink" | "unlinkat" | "rmdir":
                if inode is not None:
                    self._change(Name(inode, old=place))
            case "rename" | "renameat" | "renameat2":
                new = self._place(paths[1])
                if inode is not None and new is not None:
                    self._change(Name(inode, new=new, old=place))
            case "write" | "pwrite64" | "writev" | "copy_file_range":
                if inode is not None and call.data and call.offset is not None:
                    self._change(Content(inode, call.offset, call.data))
            case "truncate" | "ftruncate":
                if inode is not None:
                    self._change(Content(inode, call.number, None))
            case "fsync" | "fdatasync":
                self._sync(inode)
            case "chmod" | "fchmod" | "fchmodat" | "utimensat" | "setxattr" | "fsetxattr" | "ioctl":
                pass  # no content; and what was cloned shows where the end is compared
            case name:
                raise NotImplementedError(name)

    def after_power_loss(self, keep: Keep) -> Tree:
        """What is there if of what is not safe only that is which *keep* returns."""
        tree = self.safe.copy()
        for change in self.pending:
            kept = keep(change)
            if kept is not None:
                tree.apply(kept)
        return tree

    def _change(self, change: Change) -> None:
        self._now.apply(change)
        self.pending.append(change)

    def _sync(self, inode: int | None) -> None:
        still = []
        for change in self.pending:
            is_safe = change.file == inode if isinstance(change, Content) else inode is not None and change.is_in(inode)
            if is_safe:
                self.safe.apply(change)
            else:
                still.append(change)
        self.pending = still

    def _place(self, path: str) -> tuple[int, str] | None:
        parent, _, name = path.rpartition("/")
        directory = self._now.find(parent)
        return None if directory is None else (directory, name)

    def _new(self) -> int:
        self._next += 1
        return self._next - 1

    def _read(self, directory: Path, number: int) -> None:
        for path in sorted(directory.iterdir()):
            inode = self._new()
            self._now.names[number][path.name] = inode
            if path.is_dir():
                self._now.names[inode] = {}
                self._read(path, inode)
            else:
                self._now.contents[inode] = bytearray(path.read_bytes())


def everything(change: Change) -> Change | None:
    return change


def nothing(change: Change) -> Change | None:
    return None


def names_alone(change: Change) -> Change | None:
    return change if isinstance(change, Name) else None


def contents_alone(change: Change) -> Change | None:
    return change if isinstance(change, Content) else None


def torn(chance: random.Random) -> Keep:
    """Every name; of every write all, nothing, or some of its sectors, from its begin on."""

    def keep(change: Change) -> Change | None:
        return change if isinstance(change, Name) else _cut(change, chance)

    return keep


def any_of_them(chance: random.Random) -> Keep:
    """Half of the names, and of every write all, nothing, or a part."""

    def keep(change: Change) -> Change | None:
        if isinstance(change, Name):
            return change if chance.random() < 0.5 else None
        return _cut(change, chance)

    return keep


def _cut(change: Content, chance: random.Random) -> Content | None:
    what = chance.randrange(3)
    if what == 0 or change.data is None:
        return change if what < 2 else None
    size = chance.randrange(len(change.data) + 1) // SECTOR * SECTOR
    return Content(change.file, change.offset, change.data[:size]) if what == 1 else None


@dataclass
class Losses:
    """What stood at a command's output after each loss of power."""

    command: str
    num_calls: int
    num_syncs: int
    by_way: Counter[tuple[str, str]] = field(default_factory=Counter)  # (how the power went, what stood there)
    num_run_again: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0


def ways(seed: int, *, random_ones: int) -> Iterator[tuple[str, Keep]]:
    yield "nothing unsynced is there", nothing
    yield "all of it is", everything
    yield "names without contents", names_alone
    yield "contents without names", contents_alone
    for number in range(random_ones):
        yield "writes torn", torn(random.Random(f"{seed} {number}"))
        yield "any part of it", any_of_them(random.Random(f"{seed} {number}"))


def lose_power(command: Command, *, random_ones: int = 8, run_again: int = 12) -> Losses:
    """Lose the power after each call of *command*, in each way; run it again on *run_again* of the disks."""
    began = time.monotonic()
    command.import_everything()
    undisturbed = run_undisturbed(command)
    command.set_up()
    disk = Disk(command.work)
    losses = Losses(command.name, len(undisturbed.calls), 0)
    look = _Look(command, undisturbed)
    moments = [
        (number, way)
        for number in range(len(undisturbed.calls) + 1)
        for way in range(sum(1 for _ in ways(0, random_ones=random_ones)))
    ]
    chosen = set(random.Random(0).sample(moments, min(run_again, len(moments))))
    for number, call in enumerate((None, *undisturbed.calls)):
        if call is not None:
            disk.take(call)
            losses.num_syncs += call.name in ("fsync", "fdatasync")
        for place, (way, keep) in enumerate(ways(number, random_ones=random_ones)):
            tree = disk.after_power_loss(keep)
            what = look(tree)
            losses.by_way[way, what] += 1
            after = "nothing" if call is None else f"{number}, {call.name} {' '.join(call.paths)}"
            where = f"{command.name}: after {after}, {way}"
            if what not in ((WHOLE,) if number == len(undisturbed.calls) else (ABSENT, OLD, WHOLE)):
                losses.broken.append(f"{where}: the output is {what}")
            if (number, place) in chosen:
                losses.num_run_again += 1
                losses.broken += [f"{where}: {what}" for what in _run_again(command, tree, undisturbed)]
    if look(disk.after_power_loss(everything)) != WHOLE:
        losses.broken.append(f"{command.name}: the model of the disk holds something else than the disk")
    losses.seconds = time.monotonic() - began
    return losses


class _Look:
    """What stands at a command's output on a disk; each disk is laid out once."""

    def __init__(self, command: Command, undisturbed: Undisturbed) -> None:
        self._command, self._undisturbed = command, undisturbed
        self._known: dict[bytes, str] = {}

    def __call__(self, tree: Tree) -> str:
        digest = tree.digest()
        if digest not in self._known:
            self._known[digest] = self._look(tree)
        return self._known[digest]

    def _look(self, tree: Tree) -> str:
        command, old = self._command, self._undisturbed.old
        shutil.rmtree(command.work)
        tree.lay_out(command.work)
        state = name_of_state(command, self._undisturbed)
        if state == ABSENT and old is not None:
            replaced = command.look(command.work / f".{command.output}.s4convert-replaced")
            return ABSENT if replaced == old else "LOST"
        return state


def _run_again(command: Command, tree: Tree, undisturbed: Undisturbed) -> Iterator[str]:
    shutil.rmtree(command.work)
    tree.lay_out(command.work)
    yield from broken_by_the_next_run(command, undisturbed)
