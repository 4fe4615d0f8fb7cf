"""A LLaVA checkpoint on disk, read-only: its config, its tensors, its other files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from converter import strict_json
from converter.checkpoint.dtypes import ITEM_BYTES, Float32Array, decode
from converter.checkpoint.file_span import read_span
from converter.checkpoint.geometry import Geometry, read_geometry
from converter.checkpoint.language_models import LanguageModel
from converter.checkpoint.layouts import Family, find_family
from converter.checkpoint.projections import PROJECTIONS, ProjectionRows, expected_shape, projections_in
from converter.checkpoint.refusals import (
    refuse_adapter,
    refuse_delta,
    refuse_misnamed_weights,
    refuse_other_formats,
    refuse_quantised,
    refuse_weights_elsewhere,
)
from converter.checkpoint.safetensors_header import read_header
from converter.checkpoint.torch_file import read_torch_file, warn_of_old_torch
from converter.checkpoint.weight_file import TensorEntry, WeightFile
from converter.errors import CheckpointError, StorageError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
TORCH_SINGLE_FILE = "pytorch_model.bin"
TORCH_INDEX_FILE = "pytorch_model.bin.index.json"
MANIFEST_FILE = "s4convert.json"

_WEIGHT_SUFFIXES = (
    *(".safetensors", ".gguf", ".pth", ".pt", ".ckpt", ".msgpack", ".h5", ".onnx"),
    *(".safetensors.index.json", ".bin.index.json"),
)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and the shard (a file name inside the checkpoint) that holds it."""

    entry: TensorEntry
    shard: str

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def is_contiguous(self) -> bool:
        """Whether its rows follow each other in the shard."""
        return self.entry.strides is None

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def num_rows(self) -> int:
        """The size of the first axis; a scalar has one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis; 0 for an empty tensor."""
        return self.entry.num_bytes // self.num_rows if self.num_rows else 0


@dataclass(frozen=True)
class Projection:
    """A ``weight`` or ``bias`` of projection ``q``/``k``/``v``/``o``: rows [*first*, *first* + *count*) of *tensor*."""

    tensor: StoredTensor
    first: int
    count: int


@dataclass(frozen=True)
class FileStamp:
    """What tells that a file was not touched since it was looked at."""

    size: int
    mtime_ns: int
    inode: int

    @staticmethod
    def of(path: Path) -> FileStamp:
        status = path.stat()
        return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. Paths inside it (*shards*, *sidecars*, *left_behind*) are relative to *path*.

    *shards* are safetensors files, or ``.bin`` files (*is_torch*). *left_behind* are files that hold weights which
    no loader reads beside the ones in *shards*: copied, they would carry the unpruned model along. *stamps* has
    one entry per shard and sidecar.
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
    stamps: Mapping[str, FileStamp]

    @staticmethod
    def open(path: Path | str) -> Checkpoint:
        """Open the checkpoint directory *path*; of the weights, only headers are read.

        Raises:
            CheckpointError: no LLaVA checkpoint of a supported kind, malformed, or contradicting its config.
            StorageError: a file cannot be read.
        """
        path = Path(path)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such directory; give the directory that holds {CONFIG_FILE}")
        refuse_adapter(path)
        refuse_delta(path)
        if not (path / CONFIG_FILE).is_file():
            refuse_other_formats(path)
            raise CheckpointError(f"{path}: has no {CONFIG_FILE}; give the directory of a checkpoint")
        config = read_json_object(path / CONFIG_FILE)
        refuse_quantised(path, config)
        refuse_weights_elsewhere(path, config)
        family = find_family(config, str(path / CONFIG_FILE))
        text_config, language_model = family.read_language_model(config, str(path / CONFIG_FILE))
        try:
            shards, index, is_torch = _open_shards(path)
            replaced = {TORCH_INDEX_FILE} if is_torch else set()
            sidecars, left_behind = _other_files(path, family, {*shards, MANIFEST_FILE, *replaced}, index)
            stamps = {name: FileStamp.of(path / name) for name in (*shards, *sidecars)}
        except OSError as error:
            raise StorageError(f"{error.filename}: cannot be read: {error.strerror}") from error
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
            stamps=MappingProxyType(stamps),
        )
        checkpoint._check_attention_tensors()
        return checkpoint

    @cached_property
    def manifest(self) -> Mapping[str, Any] | None:
        """What an earlier conversion wrote of itself, or None where the checkpoint is no conversion's output."""
        path = self.path / MANIFEST_FILE
        return read_json_object(path) if path.is_file() else None

    @cached_property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every tensor by its name, shard by shard in the order of the data."""
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
        """The language model's table of token embeddings, [vocabulary, hidden_size]."""
        for tensor in self.tensors.values():
            if self.family.is_embedding(tensor.name):
                return tensor
        raise CheckpointError(f"{self.path}: has no token embeddings; its weights are incomplete")

    def projection(self, layer: int, projection: str, kind: str) -> Projection | None:
        """The ``weight`` or ``bias`` of projection ``q``/``k``/``v``/``o``; None where the layer has none."""
        for name in (f"self_attn.{projection}_proj.{kind}", f"self_attn.qkv_proj.{kind}"):
            for part in projections_in(name, self.geometry) if name in self.layers[layer] else ():
                if part.projection == projection:
                    return Projection(self.layers[layer][name], part.first, part.count)
        return None

    def output_projection(self, layer: int) -> StoredTensor:
        """The weight of ``o_proj``, [hidden_size, num_heads * head_dim]; a tensor of its own in every layout."""
        return self.layers[layer]["self_attn.o_proj.weight"]

    def projections_in(self, tensor: StoredTensor) -> tuple[int, tuple[ProjectionRows, ...]] | None:
        """The decoder layer of *tensor* and the projections that it holds, or None where it holds none."""
        key = self.family.layer_key(tensor.name)
        if key is None:
            return None
        held = projections_in(key[1], self.geometry)
        return (key[0], held) if held else None

    def read_rows(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> Float32Array:
        """Rows [first, first + count) of *tensor* as float32; all of it where *count* is None.

        Raises:
            CheckpointError: its dtype is none of :data:`ITEM_BYTES`.
            StorageError: the file cannot be read, or is shorter than it was.
        """
        if tensor.dtype not in ITEM_BYTES:
            raise CheckpointError(
                f"{self.path / tensor.shard}: {tensor.name} is stored as {tensor.dtype}; only {', '.join(ITEM_BYTES)} "
                "can be computed with: dequantise or cast it first"
            )
        count = tensor.num_rows - first if count is None else count
        return decode(self.read_bytes(tensor, first, count), tensor.dtype).reshape(count, *tensor.shape[1:])

    def read_bytes(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> bytes:
        """Rows [first, first + count) of *tensor* as they are stored, one after the other; all where *count* is None.

        Raises:
            CheckpointError: it has fewer rows.
            StorageError: the file cannot be read, or is shorter than it was.
        """
        entry, path = tensor.entry, self.path / tensor.shard
        count = tensor.num_rows - first if count is None else count
        if not 0 <= first <= first + count <= tensor.num_rows:
            raise CheckpointError(f"{path}: {tensor.name} has {tensor.num_rows} rows, none up to {first + count}")
        begin, end = entry.begin, entry.end
        if entry.strides is None:
            begin, end = begin + first * tensor.row_bytes, begin + (first + count) * tensor.row_bytes
        try:
            with path.open("rb") as file:
                data = read_span(file.fileno(), begin, end - begin, path)
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        return data if entry.strides is None else _gather(data, entry)[first : first + count].tobytes()

    def check_unchanged(self) -> None:
        """Raise StorageError if a file of the checkpoint changed since it was opened."""
        for name, stamp in self.stamps.items():
            try:
                now = FileStamp.of(self.path / name)
            except OSError as error:
                raise StorageError(f"{self.path / name}: vanished during the run; start again") from error
            if now != stamp:
                raise StorageError(f"{self.path / name}: changed during the run; start again when it is at rest")

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
                where = f"{self.path / tensor.shard}: {tensor.name}"
                if tensor.shape != expected:
                    raise CheckpointError(
                        f"{where} has shape {list(tensor.shape)}, but {CONFIG_FILE} asks for {list(expected)}; "
                        "mend the config or the weights"
                    )
                if tensor.dtype not in ITEM_BYTES:
                    raise CheckpointError(
                        f"{where} is stored as {tensor.dtype}, and only {', '.join(ITEM_BYTES)} can be rewritten; "
                        "dequantise or cast it first"
                    )
            self._check_parts(layer)

    def _check_parts(self, layer: int) -> None:
        """Refuse a projection that stands twice, and biases that stand in the place of more."""
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


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in the file *path*.

    Raises:
        CheckpointError: not a JSON object.
        StorageError: the file cannot be read.
    """
    try:
        content = strict_json.parse(path.read_bytes())
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object; restore the file")
    return content


def _gather(data: bytes, entry: TensorEntry) -> npt.NDArray[np.void]:
    """The items of a tensor whose rows do not follow each other, from the bytes that it is spread over."""
    item = entry.num_bytes // prod(entry.shape)
    strides = tuple(stride * item for stride in entry.strides or ())
    return np.lib.stride_tricks.as_strided(np.frombuffer(data, f"V{item}", 1), entry.shape, strides)


def _open_shards(path: Path) -> tuple[dict[str, WeightFile], str | None, bool]:
    """(shards, the index that names them, whether they are torch's): what stock loaders would read, in their order."""
    for single, index, read in (
        (SINGLE_FILE, INDEX_FILE, read_header),
        (TORCH_SINGLE_FILE, TORCH_INDEX_FILE, read_torch_file),
    ):
        has_single, has_index = (path / single).is_file(), (path / index).is_file()
        if has_single and has_index:
            raise CheckpointError(
                f"{path}: has both {single} and {index}, and loaders differ in which they read; remove one"
            )
        is_torch = read is read_torch_file
        if is_torch and (has_single or has_index):
            warn_of_old_torch()
        if has_single:
            return {single: read(path / single)}, None, is_torch
        if has_index:
            return _open_indexed(path, index, read), index, is_torch
    refuse_other_formats(path)
    refuse_misnamed_weights(path)
    raise CheckpointError(
        f"{path}: has none of {SINGLE_FILE}, {INDEX_FILE}, {TORCH_SINGLE_FILE}, {TORCH_INDEX_FILE}; "
        "download the weights as well"
    )


def _open_indexed(path: Path, index_file: str, read: Callable[[Path], WeightFile]) -> dict[str, WeightFile]:
    index = path / index_file
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; restore the file")
    for tensor, shard in weight_map.items():
        # A plain name only: neither reading nor publishing may ever reach outside the directory.
        if not isinstance(shard, str) or Path(shard).name != shard or {"\0", "\\"} & set(shard) or shard in (".", ".."):
            raise CheckpointError(f"{index}: {tensor} is mapped to {shard!r}, which is not a plain file name")
    shards: dict[str, WeightFile] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise CheckpointError(f"{index}: names {shard}, which is missing; download it again")
        shards[shard] = read(path / shard)
    for shard, weights in shards.items():
        for entry in weights.entries:
            if weight_map.get(entry.name) != shard:
                raise CheckpointError(
                    f"{index}: {entry.name} stands in {shard}, but the index has it in "
                    f"{weight_map.get(entry.name, 'no file')}; rebuild the index"
                )
    held = {entry.name for weights in shards.values() for entry in weights.entries}
    missing = [name for name in weight_map if name not in held]
    if missing:
        raise CheckpointError(f"{index}: {missing[0]} is not in {weight_map[missing[0]]}; download that shard again")
    return shards


def _other_files(
    path: Path, family: Family, accounted_for: set[str], index: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sidecars, weights that no loader reads): every file that is not *accounted_for*.

    Hidden directories are left out: they hold what git and the Hub's client keep for themselves. A directory with a
    model of another type in it (a vision tower, a projector) is a part of the checkpoint; one of the same type is
    an earlier state of it.
    """
    sidecars: list[str] = []
    left_behind: list[str] = []
    for folder, subfolders, files in os.walk(path, followlinks=True):
        here = Path(folder).absolute()
        above = {directory.resolve() for directory in (here, *here.parents)}
        in_circles = [name for name in subfolders if (Path(folder) / name).resolve() in above]
        left_behind += [(Path(folder) / name).relative_to(path).as_posix() for name in in_circles]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in in_circles)
        is_part = Path(folder) != path and _holds_another_model(Path(folder), family)
        for file in sorted(files):
            relative = (Path(folder) / file).relative_to(path).as_posix()
            if relative in accounted_for:
                continue
            if not S_ISREG((path / relative).stat().st_mode):
                raise CheckpointError(f"{path / relative}: is not a regular file; move it elsewhere")
            holds_weights = relative != index and (
                file.lower().endswith(_WEIGHT_SUFFIXES) or (file.startswith("pytorch_model") and file.endswith(".bin"))
            )
            (left_behind if holds_weights and not is_part else sidecars).append(relative)
    return tuple(sidecars), tuple(left_behind)


def _holds_another_model(folder: Path, family: Family) -> bool:
    try:
        model_type = read_json_object(folder / CONFIG_FILE).get("model_type")
    except (CheckpointError, StorageError):
        return False
    return isinstance(model_type, str) and model_type != family.model_type
