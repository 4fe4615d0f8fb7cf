"""Whether a directory, or a repository on the Hub, is a checkpoint that can be read: by names, then by its config.

Nothing here looks at the disk, so that a repository can be judged before its weights are downloaded. *path* is for
messages; *entries* are the names of what stands at its top.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.file_names import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, TORCH_INDEX_FILE, TORCH_SINGLE_FILE
from converter.checkpoint.layouts import Family, find_family
from converter.checkpoint.refusals import (
    refuse_adapter,
    refuse_delta,
    refuse_misnamed_weights,
    refuse_other_formats,
    refuse_quantised,
    refuse_weights_elsewhere,
)
from converter.errors import CheckpointError


def check_entries(path: Path, entries: Collection[str]) -> None:
    """Refuse what no config.json needs to be read for.

    Raises:
        CheckpointError: an adapter, a delta, another format, or no checkpoint at all.
    """
    refuse_adapter(path, entries)
    refuse_delta(path)
    if CONFIG_FILE not in entries:
        refuse_other_formats(path, entries)
        raise CheckpointError(f"{path}: has no {CONFIG_FILE}; give the directory of a checkpoint")


def read_family(path: Path, entries: Collection[str], config: Mapping[str, Any]) -> Family:
    """The family of the checkpoint whose config.json holds *config*.

    Raises:
        CheckpointError: its weights are quantised or elsewhere, or it is of no family that is known.
    """
    refuse_quantised(path, entries, config)
    refuse_weights_elsewhere(path, config)
    return find_family(config, str(path / CONFIG_FILE))


def find_weights(path: Path, entries: Collection[str]) -> str:
    """The file that stock loaders begin at: a single file of weights, or an index; safetensors come before ``.bin``.

    Raises:
        CheckpointError: there is none, or there are two of one kind.
    """
    for single, index in ((SINGLE_FILE, INDEX_FILE), (TORCH_SINGLE_FILE, TORCH_INDEX_FILE)):
        if single in entries and index in entries:
            raise CheckpointError(
                f"{path}: has both {single} and {index}, and loaders differ in which they read; remove one"
            )
        if single in entries or index in entries:
            return single if single in entries else index
    refuse_other_formats(path, entries)
    refuse_misnamed_weights(path, entries)
    raise CheckpointError(
        f"{path}: has none of {SINGLE_FILE}, {INDEX_FILE}, {TORCH_SINGLE_FILE}, {TORCH_INDEX_FILE}; "
        "download the weights as well"
    )
