"""A LLaVA checkpoint on disk, read-only: its config, its tensors, its other files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from stat import S_IMODE
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..disk import ask_for, read_into
from ..errors import CheckpointError, StorageError, enough_memory, reading, shown
from .dtypes import ITEM_BYTES, Float32Array, Float64Array, decode
from .families import Family, LanguageModel, check_entries, read_family
from .files import CONFIG_FILE, MANIFEST_FILE, TORCH_INDEX_FILE, read_json_object
from .fingerprint import fingerprint
from .geometry import PROJECTIONS, Geometry, ProjectionRows, expected_shape, projections_in, read_geometry
from .shards import open_shards
from .sidecars import list_files, sort_files
from .tensors import Projection, StoredTensor, TensorEntry, WeightFile

# silent_heads reads these rows first: few heads that are not silent are zero in all of them.
PROBE_ROWS = 16
BLOCK_BYTES = 4 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")  # the Hub's cache names by it what is in LFS, and other files by their git hash


@dataclass(frozen=True)
class Repository:
    """The source of a checkpoint on the Hub: the *files* of *repo_id* at *commit*, a hash of 40 digits."""

    repo_id: str
    commit: str
    files: frozenset[str]

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit}"


@dataclass(frozen=True)
class FileStamp:
    """Tells whether a file changed; *mode* is its permissions. Anybody can set the mtime, and nobody the ctime."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int

    @staticmethod
    def of(path: Path) -> FileStamp:
        return FileStamp.from_status(path.stat())

    @staticmethod
    def from_status(status: os.stat_result) -> FileStamp:
        mode = S_IMODE(status.st_mode)
        return FileStamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, mode)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. The names in *shards*, *sidecars* and *left_behind* are relative to *path*.

    *shards* are safetensors files, or ``.bin`` files (*is_torch*). *left_behind* are other files of weights, which no
    loader reads: a copy of them would hold the unpruned model. *passed_by* is what else no conversion copies, with the
    reason. *stamps* has an entry for every shard and sidecar.
    *repository* is None where it was not downloaded.
    """

    path: Path
    config: Mapping[str, Any]
    family: Family
    geometry: Geometry
    text_config: Mapping[str, Any]
    language_model: LanguageModel
    is_torch: bool
    shards: Mapping[str, WeightFile]
    sidecars: tuple[str, ...]
    left_behind: tuple[str, ...]
    passed_by: Mapping[str, str]
    stamps: Mapping[str, FileStamp]
    repository: Repository | None

    @staticmethod
    def open(path: Path | str, repository: Repository | None = None) -> Checkpoint:
        """Open the checkpoint directory *path*; of the weights, only headers are read.

        Where *path* is a download of *repository*, only the repository's files count.

        Raises:
            CheckpointError: it is not a checkpoint of a supported kind, is malformed, or contradicts its config.
            StorageError: a file cannot be read.
        """
        path = Path(path)
        among = None if repository is None else repository.files
        with reading(path):
            if not path.is_dir():
                raise CheckpointError(f"{path}: no such directory; give the directory that holds {CONFIG_FILE}")
            entries = {entry.name for entry in path.iterdir() if entry.exists()}
        entries = entries if among is None else entries & among
        check_entries(path, entries)
        with reading(path):
            files, passed_by = list_files(path, among)
        config = read_json_object(path / CONFIG_FILE)
        family = read_family(path, entries, config)
        text_config, language_model = family.read_language_model(config, str(path / CONFIG_FILE))
        with reading(path):
            shards, index, is_torch = open_shards(path, entries)
            accounted_for = {*shards, MANIFEST_FILE, *([TORCH_INDEX_FILE] if is_torch else [])}
            others = [name for name in files if name not in accounted_for]
            sidecars, left_behind = sort_files(path, others, family, index)
            stamps = {name: FileStamp.of(path / name) for name in (*shards, *sidecars)}
        checkpoint = Checkpoint(
            path=path,
            config=config,
            family=family,
            geometry=read_geometry(text_config, language_model, str(path / CONFIG_FILE)),
            text_config=text_config,
            language_model=language_model,
            is_torch=is_torch,
            shards=MappingProxyType(shards),
            sidecars=sidecars,
            left_behind=left_behind,
            passed_by=MappingProxyType(passed_by),
            stamps=MappingProxyType(stamps),
            repository=repository,
        )
        checkpoint._check_attention_tensors()
        return checkpoint

    @property
    def known_as(self) -> Path:
        """Its directory, or ``org/name`` on the Hub: the name that loaders use."""
        return self.path if self.repository is None else Path(self.repository.repo_id)

    @property
    def source(self) -> str:
        """Its source without a path of this machine: the directory's name, or ``org/name@commit``."""
        return self.path.resolve().name if self.repository is None else str(self.repository)

    @cached_property
    def fingerprint(self) -> str:
        """A short name for the weights of its language model, see :mod:`~s4convert.checkpoint.fingerprint`."""
        return fingerprint(self)

    @cached_property
    def manifest(self) -> Mapping[str, Any] | None:
        """The manifest of an earlier conversion, or None where the checkpoint is no output of one."""
        path = self.path / MANIFEST_FILE
        return read_json_object(path) if path.is_file() else None

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its name; shard by shard, in the order of the data."""
        return MappingProxyType(
            {e.name: StoredTensor(e, shard) for shard, weights in self.shards.items() for e in weights.entries}
        )

    @cached_property
    def layers(self) -> tuple[Mapping[str, StoredTensor], ...]:
        """For each decoder layer, its tensors by their names inside the layer."""
        if self.geometry.num_layers > len(self.tensors):
            raise CheckpointError(
                f"{self.path}: {CONFIG_FILE} states {self.geometry.num_layers} layers, but there are only "
                f"{len(self.tensors)} tensors; its weights are incomplete"
            )
        layers: list[dict[str, StoredTensor]] = [{} for _ in range(self.geometry.num_layers)]
        for tensor in self.tensors.values():
            key = self.family.layer_key(tensor.name)
            if key is None:
                continue
            layer, name = key
            if layer >= len(layers):
                raise CheckpointError(
                    f"{self.path / tensor.shard}: {tensor.name} is beyond the {len(layers)} layers that "
                    f"{CONFIG_FILE} states; mend the config"
                )
            if name in layers[layer]:
                raise CheckpointError(
                    f"{self.path / tensor.shard}: {tensor.name} and {layers[layer][name].name} are the same "
                    "tensor under two names; save the checkpoint anew"
                )
            layers[layer][name] = tensor
        return tuple(MappingProxyType(layer) for layer in layers)

    @cached_property
    def embedding(self) -> StoredTensor:
        """The table of token embeddings [vocabulary, hidden_size]."""
        return self._only(self.family.is_embedding, "token embeddings")

    @cached_property
    def final_norm(self) -> StoredTensor:
        """The weight of the norm behind the last decoder layer [hidden_size]."""
        return self._only(self.family.is_final_norm, "final norm")

    def _only(self, is_wanted: Callable[[str], bool], what: str) -> StoredTensor:
        for tensor in self.tensors.values():
            if is_wanted(tensor.name):
                return tensor
        raise CheckpointError(f"{self.path}: has no {what}; its weights are incomplete")

    @cached_property
    def vocabulary_projection(self) -> StoredTensor:
        """The weight of ``lm_head`` [vocabulary, hidden_size]; the token embeddings where the config ties the two."""
        tied = self.text_config.get("tie_word_embeddings", self.config.get("tie_word_embeddings", False))
        heads = [tensor for name, tensor in self.tensors.items() if self.family.is_vocabulary_projection(name)]
        return self.embedding if tied or not heads else heads[0]

    def projection(self, layer: int, projection: str, kind: str) -> Projection | None:
        """The ``weight`` or ``bias`` of projection ``q``/``k``/``v``/``o``; None where the layer has none."""
        for name in (f"self_attn.{projection}_proj.{kind}", f"self_attn.qkv_proj.{kind}"):
            for part in projections_in(name, self.geometry) if name in self.layers[layer] else ():
                if part.projection == projection:
                    return Projection(self.layers[layer][name], part.first, part.count)
        return None

    def output_projection(self, layer: int) -> StoredTensor:
        """The weight of ``o_proj`` [hidden_size, num_heads * head_dim]."""
        return self.layers[layer]["self_attn.o_proj.weight"]

    def projections_in(self, tensor: StoredTensor) -> tuple[int, tuple[ProjectionRows, ...]] | None:
        """(the decoder layer of *tensor*, the projections that it holds), or None where it holds none."""
        layer, name = self.family.layer_key(tensor.name) or (0, "")
        held = projections_in(name, self.geometry)
        return (layer, held) if held else None

    def read_projection(self, layer: int, projection: str) -> Float64Array:
        """The whole weight of *layer*'s projection ``q``, ``k``, ``v`` or ``o``, [rows, columns].

        Raises:
            CheckpointError: it holds NaN or infinity.
            StorageError: it cannot be read.
        """
        rows = self.projection(layer, projection, "weight")
        assert rows is not None, "a checkpoint without it cannot be opened"
        weight = self.read_rows(rows.tensor, rows.first, rows.count)
        if not np.isfinite(weight).all():
            raise CheckpointError(
                f"{self.path / rows.tensor.shard}: {rows.tensor.name} (layer {layer}) holds NaN or infinity; "
                "mend the checkpoint first"
            )
        return weight.astype(np.float64)

    def read_rows(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> Float32Array:
        """Rows [first, first + count) of *tensor* as float32; all from *first* on where *count* is None.

        Raises:
            CheckpointError: its dtype is not in :data:`ITEM_BYTES`.
            StorageError: the file cannot be read, or became shorter.
            OutOfMemoryError: they take too much memory.
        """
        self.check_computable(tensor)
        count = tensor.num_rows - first if count is None else count
        with enough_memory(f"{self.path / tensor.shard}: {tensor.name}"):
            return decode(self.read_bytes(tensor, first, count), tensor.dtype).reshape(count, *tensor.shape[1:])

    def check_computable(self, tensor: StoredTensor) -> None:
        """Raise CheckpointError where *tensor*'s dtype is not in :data:`ITEM_BYTES`."""
        if tensor.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{self.path / tensor.shard}: {tensor.name} is stored as {tensor.dtype}; only {', '.join(ITEM_BYTES)} "
                "can be computed with: dequantise or cast it first"
            )

    def read_bytes(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> bytearray:
        """As :meth:`read_rows`, but the bytes as they are stored, one row after the other.

        Raises:
            CheckpointError: *tensor* has fewer rows.
            StorageError: the file cannot be read, or became shorter.
        """
        count = tensor.num_rows - first if count is None else count
        self._check_rows(tensor, first, count)
        begin, size = tensor.entry.begin + first * tensor.row_bytes, count * tensor.row_bytes
        if not tensor.is_contiguous:
            begin, size = tensor.entry.begin, tensor.entry.end - tensor.entry.begin
        with enough_memory(f"{self.path / tensor.shard}: {tensor.name}"):
            data = bytearray(size)
            self._read(memoryview(data), tensor, begin)
            if tensor.is_contiguous:
                return data
            return bytearray(_gather(data, tensor.entry)[first : first + count].tobytes())

    def read_into(self, into: memoryview, tensor: StoredTensor, first: int, count: int) -> None:
        """As :meth:`read_bytes`, of a contiguous *tensor*, *into* memory that has just the room for it."""
        self._check_rows(tensor, first, count)
        self._read(into, tensor, tensor.entry.begin + first * tensor.row_bytes)

    def _check_rows(self, tensor: StoredTensor, first: int, count: int) -> None:
        if not 0 <= first <= first + count <= tensor.num_rows:
            where = f"{self.path / tensor.shard}: {tensor.name}"
            raise CheckpointError(f"{where} has {tensor.num_rows} rows, none up to {first + count}")

    def _read(self, into: memoryview, tensor: StoredTensor, begin: int) -> None:
        path = self.path / tensor.shard
        with reading(path), path.open("rb") as file:
            read_into(file.fileno(), begin, into, str(path))

    def read_ahead(self, tensors: Iterable[StoredTensor]) -> None:
        """Have the kernel bring *tensors* into the page cache meanwhile; where it does not, they are read later."""
        for tensor in tensors:
            ask_for(self.path / tensor.shard, tensor.entry.begin, tensor.entry.end - tensor.entry.begin)

    def silent_heads(self, layer: int) -> tuple[int, ...]:
        """The heads of *layer* whose ``o_proj`` columns are all zero, sorted; StorageError as :meth:`read_rows`."""
        output = self.output_projection(layer)
        geometry = self.geometry
        silent = np.ones(geometry.num_heads, dtype=bool)
        first, count = 0, PROBE_ROWS
        while first < output.shape[0] and silent.any():
            rows = self.read_rows(output, first, min(count, output.shape[0] - first))
            silent &= ~rows.reshape(len(rows), geometry.num_heads, geometry.head_dim).any(axis=(0, 2))
            first += len(rows)
            count = max(1, BLOCK_BYTES // output.row_bytes)
        return tuple(int(head) for head in np.flatnonzero(silent))

    def known_sha256(self, shard: str) -> str | None:
        """The sha256 that *shard* should have: as the Hub's cache names it, or the manifest of an earlier conversion.

        None where neither says one.
        """
        blob = (self.path / shard).resolve()
        if blob.parent.name == "blobs" and _SHA256.fullmatch(blob.name):
            return blob.name
        files = None if self.manifest is None else self.manifest.get("files")
        stated = files.get(shard) if isinstance(files, dict) else None
        sha256 = stated.get("sha256") if isinstance(stated, dict) else None
        return sha256 if isinstance(sha256, str) else None

    def check_unchanged(self, *, besides: Collection[str] = ()) -> None:
        """Refuse a directory in which anything changed since it was opened, or appeared, but for the files *besides*.

        Raises:
            StorageError: something changed, vanished or appeared, or cannot be read.
            CheckpointError: what appeared is no file that a checkpoint may have.
        """
        for name, stamp in self.stamps.items():
            try:
                now = FileStamp.of(self.path / name)
            except OSError as error:
                raise StorageError(f"{self.path / name}: vanished during the run; start again") from error
            if now != stamp:
                raise StorageError(f"{self.path / name}: changed during the run; start again when it is at rest")
        with reading(self.path):
            files, passed_by = list_files(self.path, None if self.repository is None else self.repository.files)
        known = {*self.stamps, *self.left_behind, *self.passed_by, MANIFEST_FILE, TORCH_INDEX_FILE, *besides}
        for name in (*files, *passed_by):
            if name not in known:
                raise StorageError(f"{self.path / name}: appeared during the run; start again when it is at rest")

    def _check_attention_tensors(self) -> None:
        for layer, tensors in enumerate(self.layers):
            for projection in PROJECTIONS:
                if self.projection(layer, projection, "weight") is None:
                    raise CheckpointError(
                        f"{self.path}: layer {layer} has no {projection}_proj.weight; "
                        "its weights are incomplete or of another layout"
                    )
            for name, tensor in tensors.items():
                held = projections_in(name, self.geometry)
                if not held:
                    continue
                expected = expected_shape(held, self.geometry)
                if tensor.shape != expected:
                    raise CheckpointError(
                        f"{self.path / tensor.shard}: {tensor.name} has shape {list(tensor.shape)}, but {CONFIG_FILE} "
                        f"asks for {shown(list(expected))}; mend the config or the weights"
                    )
                if tensor.dtype not in ITEM_BYTES:
                    raise CheckpointError(
                        f"{self.path / tensor.shard}: {tensor.name} is stored as {tensor.dtype}, and only "
                        f"{', '.join(ITEM_BYTES)} can be rewritten; dequantise or cast it first"
                    )
            self._check_parts(layer)

    def _check_parts(self, layer: int) -> None:
        """Refuse a projection that is stored twice, and biases of other projections than in layer 0."""
        for kind in ("weight", "bias"):
            apart = [name for p in "qkv" if (name := f"self_attn.{p}_proj.{kind}") in self.layers[layer]]
            if apart and f"self_attn.qkv_proj.{kind}" in self.layers[layer]:
                raise CheckpointError(
                    f"{self.path}: layer {layer} has {apart[0]} and self_attn.qkv_proj.{kind}, and loaders differ in "
                    "which they read; save the checkpoint anew"
                )
        biased, first = self._biased(layer), self._biased(0)
        if biased != first or biased.removesuffix("o") not in ("", "qkv"):
            stated = f", layer 0 for {', '.join(first) or 'none'}" if layer else ""
            raise CheckpointError(
                f"{self.path}: layer {layer} has biases for {', '.join(biased) or 'none'} of q, k, v, o{stated}; its "
                "weights are incomplete: download them again"
            )

    def _biased(self, layer: int) -> str:
        """The projections of *layer* that have a bias."""
        return "".join(p for p in PROJECTIONS if self.projection(layer, p, "bias") is not None)


def _gather(data: bytearray, entry: TensorEntry) -> npt.NDArray[np.void]:
    """The elements of a tensor that is not contiguous, from the bytes *data* that it spans."""
    item = entry.num_bytes // prod(entry.shape)
    strides = tuple(stride * item for stride in entry.strides or ())
    return np.lib.stride_tricks.as_strided(np.frombuffer(data, f"V{item}", 1), entry.shape, strides)
