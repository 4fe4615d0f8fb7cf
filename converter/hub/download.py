"""Downloads from the Hub: chooses the files that a conversion needs, and gets them through the client's cache.

Only the client writes to its cache; a download that was cut off continues.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ..checkpoint import CONFIG_FILE, INDEX_FILE, Repository, read_json_object
from ..checkpoint.families import check_entries, read_family
from ..checkpoint.files import GIT_ATTRIBUTES_FILE, TOOL_DIRECTORIES, TORCH_INDEX_FILE
from ..checkpoint.refusals import TRAINING_FILES
from ..checkpoint.shards import find_weights, read_weight_map
from ..checkpoint.sidecars import holds_another_model, is_weight_name
from ..disk import walk
from ..errors import CheckpointError, HubError, MaskError, reading, shown
from ..mask.formats.content import MAX_BYTES
from .client import hub_client
from .failures import hub_failures
from .names import HubName

if TYPE_CHECKING:
    from huggingface_hub import HfApi


_log = logging.getLogger(__name__)

_TOWER_FILES = frozenset({CONFIG_FILE, "preprocessor_config.json"})  # beside its weights
_KEPT = "what has arrived is kept"
_INTERRUPTED = "nothing was written; what was downloaded is kept"


def fetch_checkpoint(name: HubName, *, progress: bool = False) -> tuple[Path, Repository]:
    """Download what a conversion needs of the repository *name*: (a directory in the client's cache, the repository).

    A repository that cannot be converted is refused before its weights are downloaded. With HF_HUB_OFFLINE, everything
    comes from the cache.

    Raises:
        CheckpointError: it is no checkpoint of a supported kind.
        HubError: the download failed, or with HF_HUB_OFFLINE, the cache lacks a file.
        StorageError: the disk refused.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        path, repository = cached_checkpoint(name)
        _log.info("%s@%s: taken from the cache as it stands there", name.repo_id, repository.commit)
        return path, repository
    with hub_client(progress=progress, then=_INTERRUPTED) as hub:
        return _snapshot(name, _Remote(hub, name))


def cached_checkpoint(name: HubName) -> tuple[Path, Repository]:
    """As :func:`fetch_checkpoint`, from the cache alone; HubError where it lacks a file."""
    with hub_client(progress=False, then=_INTERRUPTED) as hub:
        return _snapshot(name, _Cached(hub, name))


def _snapshot(name: HubName, snapshot: _Remote | _Cached) -> tuple[Path, Repository]:
    chosen = _choose(name, snapshot)
    return snapshot.get_all(chosen), Repository(name.repo_id, snapshot.commit, chosen)


def fetch_tower(name: HubName, *, progress: bool = False) -> Path:
    """The directory of the vision tower *name* in the client's cache: as it stands there if it is whole, or downloaded.

    What comes is its config, the config of its image processor, and weights of one kind.

    Raises:
        CheckpointError: the repository holds no such files.
        HubError: the download failed, or with HF_HUB_OFFLINE, the cache lacks a file.
        StorageError: the disk refused.
    """
    from huggingface_hub import constants

    cached = None if constants.HF_HUB_OFFLINE else cached_tower(name)
    if cached is not None:
        return cached
    with hub_client(progress=progress, then=_INTERRUPTED) as hub:
        needed = "images need this vision tower, or another that `vision_tower` names"
        snapshot = (_Cached if constants.HF_HUB_OFFLINE else _Remote)(hub, name, otherwise=needed)
        return snapshot.get_all(_choose_of_tower(name, snapshot))


def cached_tower(name: HubName) -> Path | None:
    """As :func:`fetch_tower`, from the cache alone; None where it lacks a file."""
    with hub_client(progress=False, then=_INTERRUPTED) as hub:
        try:
            snapshot = _Cached(hub, name)
            return snapshot.get_all(_choose_of_tower(name, snapshot))
        except (CheckpointError, HubError):
            return None


def fetch_mask(name: HubName, *, progress: bool = False) -> tuple[Path, HubName]:
    """Download the file *name*, unless the cache has it: (its path, its name with the commit as the revision).

    Raises:
        MaskError: it is too large for a mask.
        HubError: the download failed.
        StorageError: the disk refused.
    """
    from huggingface_hub import constants

    assert name.file is not None
    with hub_client(progress=progress, then=_INTERRUPTED) as hub, hub_failures(str(name)):
        if not constants.HF_HUB_OFFLINE:
            entries = hub.get_paths_info(name.repo_id, [name.file], revision=name.revision)
            size = sum(getattr(entry, "size", 0) for entry in entries)
            if size > MAX_BYTES:
                raise MaskError(f"{name}: {size:,} bytes are too many for a mask, at most {MAX_BYTES:,} are read")
        path = Path(hub.hf_hub_download(name.repo_id, name.file, revision=name.revision))
    commit = path.parents[len(Path(name.file).parts) - 1].name  # snapshots/COMMIT/FILE, as the cache is laid out
    return path, replace(name, revision=commit)


def choose_files(
    files: Collection[str], weights: Collection[str], holds_another_model: Callable[[str], bool]
) -> frozenset[str]:
    """*weights*, which are at the top of the repository, and the sidecars among its *files*.

    A folder with weights is a part of the checkpoint (a vision tower) where it *holds_another_model*, and is downloaded
    with weights of one kind. Any other folder with weights holds another state or format of the same model; it is left
    out with all below it, as are files of a training, and what is git's or the Hub's own.
    """
    folders = {folder for file in files for folder in PurePosixPath(file).parents}
    weight_files = (PurePosixPath(file) for file in files if is_weight_name(PurePosixPath(file).name))
    with_weights = {file.parent for file in weight_files} - {PurePosixPath()}
    parts = {folder for folder in with_weights if holds_another_model(folder.as_posix())}
    left_out = (with_weights - parts) | {folder for folder in folders if folder.name in TOOL_DIRECTORIES}
    chosen = set(weights)
    for file in map(PurePosixPath, files):
        if left_out.intersection(file.parents) or file.name in (*TRAINING_FILES, GIT_ATTRIBUTES_FILE):
            continue
        if not is_weight_name(file.name) or (file.parent in parts and _is_read(file, files)):
            chosen.add(file.as_posix())
    return frozenset(chosen)


def _is_read(weights: PurePosixPath, files: Iterable[str]) -> bool:
    """Whether loaders read the file *weights* of a folder: safetensors, or ``.bin`` where there are none."""
    beside = {file.name for file in map(PurePosixPath, files) if file.parent == weights.parent}
    kind = ".safetensors" if any(name.endswith(".safetensors") for name in beside) else ".bin"
    return weights.name.endswith((kind, f"{kind}.index.json"))


class _Remote:
    """A commit on the Hub; :meth:`get` and :meth:`get_all` download files to the cache."""

    def __init__(self, hub: HfApi, name: HubName, otherwise: str | None = None) -> None:
        self._hub, self._name = hub, name
        with hub_failures(str(name), otherwise=otherwise or _otherwise(name)):
            info = hub.model_info(name.repo_id, revision=name.revision)
        self.commit = info.sha or ""
        self.files = tuple(file.rfilename for file in info.siblings or ())
        for file in self.files:
            if not file.isprintable():  # the client's bars show names as they are
                raise HubError(f"{name}: {shown(file)} is no printable name of a file; its owner has to rename it")

    def get(self, file: str) -> Path:
        with hub_failures(str(replace(self._name, file=file))):
            return Path(self._hub.hf_hub_download(self._name.repo_id, file, revision=self.commit))

    def get_all(self, files: frozenset[str]) -> Path:
        # By the revision as the user named it, so that the cache knows the commit of a branch.
        with hub_failures(str(self._name), kept=_KEPT):
            path = Path(
                self._hub.snapshot_download(
                    self._name.repo_id,
                    revision=self._name.revision,
                    allow_patterns=[glob.escape(file) for file in sorted(files)],
                )
            )
        if path.name != self.commit:
            raise HubError(f"{self._name}: changed during the download; run again")
        missing = sorted(file for file in files if not (path / file).is_file())
        if missing:  # where the client fails late, it returns all the same
            raise HubError(f"{self._name}: {missing[0]} has not arrived; {_KEPT}; run again")
        return path

    def lacks(self, file: str) -> CheckpointError:
        """The error of a vision tower without *file*."""
        return CheckpointError(f"{self._name}: has no {file}, and a vision tower needs it; name another")


class _Cached:
    """A commit of which the cache holds some files or all."""

    def __init__(self, hub: HfApi, name: HubName, otherwise: str | None = None) -> None:
        self._name = name
        with hub_failures(str(name), otherwise=otherwise or _otherwise(name)):
            self._path = Path(
                hub.snapshot_download(
                    name.repo_id, revision=name.revision, local_files_only=True, allow_patterns=[CONFIG_FILE]
                )
            )
        self.commit = self._path.name
        with reading(self._path):
            self.files = tuple(file for file in walk(self._path) if (self._path / file).is_file())
        if CONFIG_FILE not in self.files:
            raise self.lacks(CONFIG_FILE)

    def get(self, file: str) -> Path:
        return self._path / file

    def get_all(self, files: frozenset[str]) -> Path:
        for file in sorted(files.difference(self.files)):
            raise self.lacks(file)
        return self._path

    def lacks(self, file: str) -> HubError:
        """The error of a cache without *file*."""
        return HubError(
            f"{self._name}: {file} is not in the cache, and HF_HUB_OFFLINE is set; run once without it to download it"
        )


def _otherwise(name: HubName) -> str | None:
    """A hint for a *name* that may have been meant as a directory."""
    return None if name.revision else "there is no directory of that name here"


def _choose(name: HubName, snapshot: _Remote | _Cached) -> frozenset[str]:
    """The files that a conversion needs; refuses what cannot be converted, before weights are downloaded."""
    where = Path(name.repo_id)
    entries = {file.partition("/")[0] for file in snapshot.files}
    check_entries(where, entries)
    weights = find_weights(where, entries)
    family = read_family(where, entries, read_json_object(snapshot.get(CONFIG_FILE)))
    shards = _with_shards(name, snapshot, weights)

    def is_part(folder: str) -> bool:
        config = f"{folder}/{CONFIG_FILE}"
        return config in snapshot.files and holds_another_model(snapshot.get(config).parent, family)

    return choose_files(snapshot.files, shards, is_part)


def _choose_of_tower(name: HubName, snapshot: _Remote | _Cached) -> frozenset[str]:
    """The files of a vision tower that stock code reads."""
    for file in _TOWER_FILES:
        if file not in snapshot.files:
            raise snapshot.lacks(file)
    return _with_shards(name, snapshot, find_weights(Path(name.repo_id), snapshot.files)) | _TOWER_FILES


def _with_shards(name: HubName, snapshot: _Remote | _Cached, weights: str) -> frozenset[str]:
    """The file *weights*, and the shards that it names if it is an index."""
    if weights not in (INDEX_FILE, TORCH_INDEX_FILE):
        return frozenset({weights})
    shards = frozenset(read_weight_map(snapshot.get(weights)).values())
    if isinstance(snapshot, _Remote) and not shards <= set(snapshot.files):
        absent = min(shards - set(snapshot.files))
        raise CheckpointError(f"{name}: {weights} names {absent}, which is missing; its owner has to upload it")
    return shards | {weights}
