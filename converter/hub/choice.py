"""Which files of a repository make up its checkpoint, told by their names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import PurePosixPath

from converter.checkpoint.file_names import GIT_ATTRIBUTES_FILE
from converter.checkpoint.other_files import is_weight_name
from converter.checkpoint.refusals import TRAINING_FILES

_TOP = PurePosixPath()


def choose_files(
    files: Collection[str], weights: Collection[str], holds_another_model: Callable[[str], bool]
) -> frozenset[str]:
    """*weights*, which stand at the top of the repository, and the sidecars among its *files*.

    A folder with weights in it is a part of the checkpoint (a vision tower) where it *holds_another_model*, and
    comes with weights of one kind; any other is another state or format of the same model, and stays behind with all
    that is below it. So do hidden folders, what training leaves beside a model, and what is git's.
    """
    folders = {folder for file in files for folder in PurePosixPath(file).parents}
    with_weights = {PurePosixPath(file).parent for file in files if is_weight_name(PurePosixPath(file).name)} - {_TOP}
    parts = {folder for folder in with_weights if holds_another_model(folder.as_posix())}
    left_out = (with_weights - parts) | {folder for folder in folders if folder.name.startswith(".")}
    chosen = set(weights)
    for file in map(PurePosixPath, files):
        if left_out.intersection(file.parents) or file.name in (*TRAINING_FILES, GIT_ATTRIBUTES_FILE):
            continue
        if not is_weight_name(file.name) or (file.parent in parts and _is_read(file, files)):
            chosen.add(file.as_posix())
    return frozenset(chosen)


def _is_read(weights: PurePosixPath, files: Iterable[str]) -> bool:
    """Whether loaders read the file *weights* of a part: safetensors, or ``.bin`` where there are none."""
    beside = {file.name for file in map(PurePosixPath, files) if file.parent == weights.parent}
    kind = ".safetensors" if any(name.endswith(".safetensors") for name in beside) else ".bin"
    return weights.name.endswith((kind, f"{kind}.index.json"))
