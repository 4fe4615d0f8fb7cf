"""The files of a checkpoint beside its weights: those that a conversion copies, and those that it leaves behind."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from stat import S_ISREG

from ..errors import CheckpointError, StorageError
from .families import Family
from .files import CONFIG_FILE, GIT_ATTRIBUTES_FILE, read_json_object

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".gguf", ".pth", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx"),
    *(".safetensors.index.json", ".bin.index.json"),
)


def other_files(
    path: Path, family: Family, accounted_for: set[str], index: str | None, among: Collection[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sidecars, weights that no loader reads), of all files that are not *accounted_for*.

    *among*, if not None, limits the search to these files. Hidden directories and ``.gitattributes`` are left out. A
    directory with a model of another type (a vision tower, a projector) is a part of the checkpoint; one with a model
    of the same type is an earlier state of it.

    Raises:
        CheckpointError: something is neither a directory nor a regular file.
        OSError: the disk refused.
    """
    sidecars: list[str] = []
    left_behind: list[str] = []
    for folder, subfolders, files in os.walk(path, followlinks=True):
        here = Path(folder).absolute()
        above = {directory.resolve() for directory in (here, *here.parents)}
        in_circles = [name for name in subfolders if (Path(folder) / name).resolve() in above]
        left_behind += [(Path(folder) / name).relative_to(path).as_posix() for name in in_circles]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in in_circles)
        is_part = Path(folder) != path and holds_another_model(Path(folder), family)
        for file in sorted(files):
            relative = (Path(folder) / file).relative_to(path).as_posix()
            if relative in (*accounted_for, GIT_ATTRIBUTES_FILE) or (among is not None and relative not in among):
                continue
            if not S_ISREG((path / relative).stat().st_mode):
                raise CheckpointError(f"{path / relative}: is not a regular file; move it elsewhere")
            holds_weights = relative != index and is_weight_name(file)
            (left_behind if holds_weights and not is_part else sidecars).append(relative)
    return tuple(sidecars), tuple(left_behind)


def is_weight_name(name: str) -> bool:
    """Whether a file of this *name* holds weights in any format, or is an index of them."""
    return name.lower().endswith(_WEIGHT_SUFFIXES) or (name.startswith("pytorch_model") and name.endswith(".bin"))


def holds_another_model(folder: Path, family: Family) -> bool:
    """Whether the config.json in *folder* is of another type than *family*."""
    try:
        model_type = read_json_object(folder / CONFIG_FILE).get("model_type")
    except (CheckpointError, StorageError):
        return False
    return isinstance(model_type, str) and model_type != family.model_type
