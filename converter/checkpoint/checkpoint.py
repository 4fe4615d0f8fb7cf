"""A LLaVA checkpoint on disk, read-only: its config, its tensors, its other files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType
from typing import Any

from converter import strict_json
from converter.checkpoint.dtypes import ITEM_BYTES, Float32Array, decode
from converter.checkpoint.file_span import read_span
from converter.checkpoint.geometry import Geometry, read_geometry, supported_text_models
from converter.checkpoint.layouts import HUGGING_FACE, PROJECTIONS, Family, find_family, projection_of
from converter.checkpoint.safetensors_header import SafetensorsHeader, TensorEntry, read_header
from converter.errors import CheckpointError, StorageError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
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
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis."""
        return self.entry.num_bytes // self.shape[0]


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

    *left_behind* are files that hold weights which no loader reads beside the ones in *shards*: copied, they
    would carry the unpruned model along. *stamps* has one entry per shard and sidecar.
    """

    path: Path
    config: Mapping[str, Any]
    family: Family
    geometry: Geometry
    text_config: Mapping[str, Any]
    text_model_type: str
    shards: Mapping[str, SafetensorsHeader]
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
        if not (path / CONFIG_FILE).is_file():
            raise CheckpointError(f"{path}: has no {CONFIG_FILE}; give the directory of a checkpoint")
        config = read_json_object(path / CONFIG_FILE)
        family = find_family(config, str(path / CONFIG_FILE))
        text_config, text_model_type = _language_model_config(config, family, path / CONFIG_FILE)
        try:
            shards = _open_shards(path)
            sidecars, left_behind = _other_files(path, set(shards))
            stamps = {name: FileStamp.of(path / name) for name in (*shards, *sidecars)}
        except OSError as error:
            raise StorageError(f"{error.filename}: cannot be read: {error.strerror}") from error
        checkpoint = Checkpoint(
            path=path,
            config=config,
            family=family,
            geometry=read_geometry(text_config, text_model_type, str(path / CONFIG_FILE)),
            text_config=text_config,
            text_model_type=text_model_type,
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
            {e.name: StoredTensor(e, shard) for shard, header in self.shards.items() for e in header.entries}
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

    def projection(self, layer: int, projection: str, kind: str) -> StoredTensor | None:
        """The ``weight`` or ``bias`` of projection ``q``/``k``/``v``/``o``; None where the layer has none."""
        return self.layers[layer].get(f"self_attn.{projection}_proj.{kind}")

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
        count = tensor.shape[0] - first if count is None else count
        offset, size = tensor.entry.begin + first * tensor.row_bytes, count * tensor.row_bytes
        try:
            with (self.path / tensor.shard).open("rb") as file:
                data = read_span(file.fileno(), offset, size, self.path / tensor.shard)
        except OSError as error:
            raise StorageError(f"{self.path / tensor.shard}: cannot be read: {error.strerror}") from error
        return decode(data, tensor.dtype).reshape(count, *tensor.shape[1:])

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
                part = projection_of(name)
                if part is None:
                    continue
                expected = self.geometry.shape_of(*part)
                where = f"{self.path / tensor.shard}: {tensor.name}"
                if tensor.shape != expected:
                    raise CheckpointError(
                        f"{where} has shape {list(tensor.shape)}, but {CONFIG_FILE} asks for {list(expected)}; "
                        "mend the config or the weights"
                    )
                if tensor.dtype not in ITEM_BYTES:
                    raise CheckpointError(
                        f"{where} is stored as {tensor.dtype}; only {', '.join(ITEM_BYTES)} can be rewritten: "
                        "dequantise or cast it first"
                    )


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


def _language_model_config(config: Mapping[str, Any], family: Family, where: Path) -> tuple[Mapping[str, Any], str]:
    text_config: Any = config
    model_type = family.text_model_type
    if family.lineage == HUGGING_FACE:
        text_config = config.get("text_config")
        if not isinstance(text_config, dict):
            raise CheckpointError(f"{where}: has no text_config; is this a {family.model_type} checkpoint?")
        model_type = text_config.get("model_type", "llama")
    if model_type not in supported_text_models():
        raise CheckpointError(
            f"{where}: language model {model_type!r} is not supported (supported: {', '.join(supported_text_models())})"
        )
    return text_config, model_type


def _open_shards(path: Path) -> dict[str, SafetensorsHeader]:
    has_single, has_index = (path / SINGLE_FILE).is_file(), (path / INDEX_FILE).is_file()
    if has_single and has_index:
        raise CheckpointError(
            f"{path}: has both {SINGLE_FILE} and {INDEX_FILE}, and loaders differ in which they read; remove one"
        )
    if has_single:
        return {SINGLE_FILE: read_header(path / SINGLE_FILE)}
    if not has_index:
        raise CheckpointError(
            f"{path}: has neither {SINGLE_FILE} nor {INDEX_FILE}; save the checkpoint as safetensors first"
        )
    index = path / INDEX_FILE
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; restore the file")
    for tensor, shard in weight_map.items():
        # A plain name only: neither reading nor publishing may ever reach outside the directory.
        if not isinstance(shard, str) or Path(shard).name != shard or {"\0", "\\"} & set(shard) or shard in (".", ".."):
            raise CheckpointError(f"{index}: {tensor} is mapped to {shard!r}, which is not a plain file name")
    shards: dict[str, SafetensorsHeader] = {}
    for shard in sorted(set(weight_map.values())):
        if not (path / shard).is_file():
            raise CheckpointError(f"{index}: names {shard}, which is missing; download it again")
        shards[shard] = read_header(path / shard)
    for shard, header in shards.items():
        for entry in header.entries:
            if weight_map.get(entry.name) != shard:
                raise CheckpointError(
                    f"{index}: {entry.name} stands in {shard}, but the index has it in "
                    f"{weight_map.get(entry.name, 'no file')}; rebuild the index"
                )
    held = {entry.name for header in shards.values() for entry in header.entries}
    missing = [name for name in weight_map if name not in held]
    if missing:
        raise CheckpointError(f"{index}: {missing[0]} is not in {weight_map[missing[0]]}; download that shard again")
    return shards


def _other_files(path: Path, shards: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(sidecars, weights that no loader reads): every file that is neither a shard nor a conversion's manifest.

    Hidden directories are left out: they hold what git and the Hub's client keep for themselves.
    """
    sidecars: list[str] = []
    left_behind: list[str] = []
    for folder, subfolders, files in os.walk(path, followlinks=True):
        above = {directory.resolve() for directory in (Path(folder), *Path(folder).parents)}
        in_circles = [name for name in subfolders if (Path(folder) / name).resolve() in above]
        left_behind += [(Path(folder) / name).relative_to(path).as_posix() for name in in_circles]
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in in_circles)
        for file in sorted(files):
            relative = (Path(folder) / file).relative_to(path).as_posix()
            if relative in shards or relative == MANIFEST_FILE:
                continue
            if not S_ISREG((path / relative).stat().st_mode):
                raise CheckpointError(f"{path / relative}: is not a regular file; move it elsewhere")
            holds_weights = relative != INDEX_FILE and (
                file.lower().endswith(_WEIGHT_SUFFIXES) or (file.startswith("pytorch_model") and file.endswith(".bin"))
            )
            (left_behind if holds_weights else sidecars).append(relative)
    return tuple(sidecars), tuple(left_behind)
