"""The files of a checkpoint beside its weights: those that a conversion copies, and those that it leaves behind."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from stat import S_ISDIR, S_ISREG

from ..disk import SMALL_BYTES, walk
from ..errors import CheckpointError
from .families import Family
from .files import CONFIG_FILE, GIT_ATTRIBUTES_FILE, TOOL_DIRECTORIES, read_json_object

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".gguf", ".pth", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx"),
    *(".safetensors.index.json", ".bin.index.json"),
)

# Stock code reads these whole.
_READ_WHOLE = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json", "chat_template.json"),
)

# A file in the cache of the Hub's client.
_BLOB = re.compile(r"models--[^/]+/blobs/[^/]+")

_NAMED = 8  # files, in a message

# What else people keep beside a model: names of keys and passwords.
_SECRETS = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.kdbx", "*.asc", "id_rsa*", "id_dsa*", "id_ecdsa*"),
    *("id_ed25519*", "token", "*token.txt", "*secret*", "*password*", "*credential*", "authorized_keys"),
)


def list_files(path: Path, among: Collection[str] | None = None) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """(the files of the checkpoint *path*, what stands beside them and is no part of it, with the reason).

    *among*, if not None, limits the search to these files. Each directory is searched once: a link to another one in
    *path* is no part of the checkpoint.

    Raises:
        CheckpointError: something is neither a directory nor a regular file, a link to something outside, or too
            large for what it is.
        OSError: the disk refused.
    """
    files: list[str] = []
    passed_by: dict[str, str] = {}
    for name in walk(path, without=TOOL_DIRECTORIES):
        if among is not None and name not in among:
            continue
        if name.endswith("/"):
            passed_by[name.rstrip("/")] = "it is an empty directory"
            continue
        entry = path / name
        if entry.name in (*TOOL_DIRECTORIES, GIT_ATTRIBUTES_FILE):
            passed_by[name] = "it is git's or the Hub's own"
            continue
        _check_link(entry, path)
        status = entry.stat()
        if S_ISDIR(status.st_mode):
            passed_by[name] = "it is a link to a directory; put a copy in its place if loaders need it"
            continue
        if not S_ISREG(status.st_mode):
            raise CheckpointError(f"{entry}: is not a regular file; move it elsewhere")
        if entry.name in _READ_WHOLE and status.st_size > SMALL_BYTES:
            raise CheckpointError(
                f"{entry}: has {status.st_size:,} bytes, and loaders read it whole, so it may have {SMALL_BYTES:,}; "
                "restore the file"
            )
        files.append(name)
    return tuple(files), passed_by


def _check_link(entry: Path, top: Path) -> None:
    """Raise CheckpointError where *entry* is a link to something that is neither in *top* nor in the Hub's cache.

    What is behind a link becomes a file of the conversion, and may be pushed.
    """
    if not entry.is_symlink():
        return
    target = Path(os.path.realpath(entry))
    is_blob = _BLOB.fullmatch("/".join(target.parts[-3:])) is not None
    if not is_blob and not target.is_relative_to(os.path.realpath(top)):
        raise CheckpointError(
            f"{entry}: is a link to {target}, outside of the checkpoint; put a copy or a hard link in its place, "
            "or remove it"
        )


def sort_files(
    path: Path, files: Iterable[str], family: Family, index: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sidecars, weights that no loader reads) among the *files* of the checkpoint *path*; *index* is its index.

    A directory with a model of another type (a vision tower, a projector) is a part of the checkpoint; one with a model
    of the same type is an earlier state of it.

    Raises:
        StorageError: the config.json of a directory with weights cannot be read.
    """
    is_part = cache(lambda folder: folder != path and holds_another_model(folder, family))
    sidecars: list[str] = []
    left_behind: list[str] = []
    for name in files:
        file = path / name
        holds_weights = name != index and is_weight_name(file.name)
        (left_behind if holds_weights and not is_part(file.parent) else sidecars).append(name)
    return tuple(sidecars), tuple(left_behind)


def is_weight_name(name: str) -> bool:
    """Whether a file of this *name* holds weights in any format, or is an index of them."""
    return name.lower().endswith(_WEIGHT_SUFFIXES) or (name.startswith("pytorch_model") and name.endswith(".bin"))


def holds_another_model(folder: Path, family: Family) -> bool:
    """Whether the config.json in *folder* is of another type than *family*; StorageError where it cannot be read."""
    if not (folder / CONFIG_FILE).exists():
        return False
    try:
        model_type = read_json_object(folder / CONFIG_FILE).get("model_type")
    except CheckpointError:
        return False
    return isinstance(model_type, str) and model_type != family.model_type


def perhaps_private(names: Iterable[str]) -> str:
    """Those of the files *names* that are hidden, or named as keys and passwords are, as a message names them."""

    def is_private(name: PurePosixPath) -> bool:
        is_secret = any(fnmatchcase(name.name.lower(), pattern) for pattern in _SECRETS)
        return is_secret or any(part.startswith(".") for part in name.parts)

    found = [name for name in names if is_private(PurePosixPath(name))]
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return ", ".join(found[:_NAMED]) + more
