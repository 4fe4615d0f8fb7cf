"""The files of a directory that go to the Hub: those that its manifest states, unchanged since."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ..checkpoint import MANIFEST_FILE, read_json_object
from ..checkpoint.files import TOOL_DIRECTORIES
from ..disk import kept_sha256, sha256_of, walk
from ..errors import CheckpointError, UsageError, reading, text_of
from ..output.manifest import read_files
from ..progress import byte_bar


@dataclass(frozen=True)
class Outgoing:
    """The conversion in *directory*: *files* maps the names that go, with the manifest's, to (size, sha256).

    *strays* are other files in the directory, which stay. *source* is the checkpoint that was converted.
    """

    directory: Path
    source: str
    files: Mapping[str, tuple[int, str]]
    strays: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(size for size, _ in self.files.values())

    def to_json(self) -> dict[str, Any]:
        """The files that go and those that stay, for a script."""
        files = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in self.files.items()}
        return {"directory": str(self.directory), "files": files, "stays_behind": list(self.strays)}

    def to_text(self) -> str:
        """The files that go and those that stay, for a person."""
        width = max(len(f"{size:,}") for size, _ in self.files.values())
        lines = [f"{size:>{width},}  {name}" for name, (size, _) in self.files.items()]
        lines += [f"stays behind, it is not in {MANIFEST_FILE}: {name}" for name in self.strays]
        return text_of([*lines, "", f"{len(self.files)} files, {self.num_bytes:,} bytes"])


def read_outgoing(directory: Path, *, progress: bool = False) -> Outgoing:
    """Compare every file of the conversion in *directory* with the manifest.

    A file whose hash was kept when it was written, and that has not changed since, is not read again.

    Raises:
        UsageError: it is no directory, no conversion, or holds a link or a special file.
        CheckpointError: the manifest is malformed, or a file differs from it.
        StorageError: a file cannot be read.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: no such directory; give one that s4convert wrote")
    manifest = directory / MANIFEST_FILE
    if not manifest.is_file():
        raise UsageError(
            f"{directory}: has no {MANIFEST_FILE}, so s4convert did not write it; only conversions are pushed"
        )
    with reading(directory):
        standing = _regular_files(directory)
        content = read_json_object(manifest)
        stated = read_files(content, manifest)
        for name in stated:
            if name not in standing:
                raise CheckpointError(f"{directory / name}: is missing; convert the original again")
        with byte_bar("check", sum(standing[name] for name in stated), shown=progress) as bar:
            for name, (size, sha256) in stated.items():
                path = directory / name
                is_known = standing[name] == size and kept_sha256(path) == sha256
                if is_known:
                    bar.update(size)
                elif standing[name] != size or sha256_of(path, bar.update) != sha256:
                    raise CheckpointError(f"{path}: is not what {MANIFEST_FILE} says of it; convert the original again")
        files = dict(sorted((stated | {MANIFEST_FILE: (standing[MANIFEST_FILE], sha256_of(manifest))}).items()))
    return Outgoing(directory, str(content.get("source")), files, tuple(sorted(standing.keys() - files.keys())))


def _regular_files(directory: Path) -> dict[str, int]:
    """The size of each file in *directory*, but for git's and the Hub's own; UsageError where one is not regular."""
    sizes = {}
    for name in walk(directory, without=TOOL_DIRECTORIES):
        path = directory / name
        status = path.lstat()
        if path.name in TOOL_DIRECTORIES or name.endswith("/"):
            continue
        if not S_ISREG(status.st_mode):
            raise UsageError(f"{path}: is not a regular file; only a directory as s4convert wrote it is pushed")
        sizes[name] = status.st_size
    return sizes
