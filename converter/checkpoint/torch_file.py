"""Where the tensors of a ``.bin`` file stand: what ``torch.save`` wrote, a zip archive of storages and a pickle.

``torch.load`` reads it, with ``weights_only=True``, so that nothing in the pickle is ever run, and memory-mapped,
so that no weight is. Every storage is a member of the archive, kept without compression; where the mapped tensors
point to says which bytes of the file are theirs.
Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import logging
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter.checkpoint.weight_file import TensorEntry, WeightFile
from converter.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_LOCAL_HEADER = struct.Struct("<26xHH")  # a zip member's own header, down to the lengths of its name and extra field

# By the names that torch gives them; those of newer versions may be unknown to the one that runs.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip

# Before this version, a crafted file could run code in spite of weights_only (CVE-2025-32434, CVE-2026-24747).
_SAFE_TORCH = (2, 10)


def read_torch_file(path: Path) -> WeightFile:
    """Read which tensors the file *path* holds and where; no weight is read.

    Raises:
        CheckpointError: it is no such file, holds something else than tensors, or is damaged.
        StorageError: the file cannot be read.
    """
    try:
        storages = _storage_spans(path)
        tensors = _load(path)
        base = _mapping_begin(tensors, storages, path)
        entries = [_entry(name, tensor, base, storages, path) for name, tensor in tensors.items()]
        return WeightFile(tuple(sorted(entries, key=lambda entry: (entry.begin, entry.name))), path.stat().st_size)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a stored one: ``F16`` is ``torch.float16``."""
    import torch

    found: torch.dtype = getattr(torch, next(name for name, stored in _DTYPES.items() if stored == dtype))
    return found


def warn_of_old_torch() -> None:
    """Say so where the installed torch reads ``.bin`` files less safely than newer ones do."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        _log.warning(
            "torch %s reads .bin and .pt files with known security holes; for files you do not trust, use torch %d.%d",
            torch.__version__,
            *_SAFE_TORCH,
        )


def _storage_spans(path: Path) -> Mapping[int, int]:
    """The end, by the begin, of every non-empty storage in the archive."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: is not in the format that torch writes since version 1.6, or damaged; "
            "copy it again, or load and save it with a newer torch"
        )
    spans: dict[int, int] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for member in archive.infolist():
                *_, folder, name = ("", *member.filename.split("/"))
                if name == "byteorder" and archive.read(member) != b"little":
                    raise CheckpointError(f"{path}: was written on a big-endian machine; load and save it on this one")
                if folder != "data" or not member.file_size:
                    continue
                if member.compress_type != zipfile.ZIP_STORED:
                    raise CheckpointError(f"{path}: {member.filename} is compressed; load and save it with torch")
                file.seek(member.header_offset)
                header = file.read(_LOCAL_HEADER.size)
                if len(header) < _LOCAL_HEADER.size:
                    raise CheckpointError(f"{path}: is damaged; copy it again")
                begin = member.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(header))
                spans[begin] = begin + member.file_size
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path}: is damaged ({error}); copy it again") from error
    return spans


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        content: Any = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and may run code when it is loaded; do not load it, and get the "
            "checkpoint as safetensors or from another source"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read by torch ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not tensors by name; save the state_dict alone"
        )
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor by name; save the state_dict alone"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{path}: {name} is sparse, quantised or empty; save it as a dense tensor first")
    return content


def _mapping_begin(tensors: Mapping[str, torch.Tensor], storages: Mapping[int, int], path: Path) -> int:
    """The address at which the file is mapped: the only one that makes every tensor's storage one of the archive's."""
    addresses = {storage.data_ptr() for tensor in tensors.values() if (storage := tensor.untyped_storage()).nbytes()}
    if not addresses:
        return 0
    lowest = min(addresses)
    fitting = [
        lowest - begin for begin in storages if all(address - lowest + begin in storages for address in addresses)
    ]
    if len(fitting) != 1:
        raise CheckpointError(f"{path}: its storages cannot be told apart; load and save it with torch")
    return fitting[0]


def _entry(name: str, tensor: torch.Tensor, base: int, storages: Mapping[int, int], path: Path) -> TensorEntry:
    dtype = _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise CheckpointError(f"{path}: {name} is stored as {tensor.dtype}, which safetensors has not; cast it first")
    item, num_bytes = tensor.element_size(), tensor.numel() * tensor.element_size()
    if not num_bytes:
        return TensorEntry(name, dtype, tuple(tensor.shape), 0, 0, 0)
    storage = tensor.untyped_storage().data_ptr() - base
    begin = storage + int(tensor.storage_offset()) * item
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    end = begin + (last + 1) * item
    if end > storages[storage]:
        raise CheckpointError(f"{path}: {name} reaches past the end of its storage; the file is damaged")
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    return TensorEntry(name, dtype, tuple(tensor.shape), begin, end, num_bytes, strides)
