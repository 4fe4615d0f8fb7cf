"""The places of the tensors in a ``.bin`` file, which ``torch.save`` wrote: a zip archive of storages and a pickle.

``torch.load`` reads it with ``weights_only=True``, which runs no code from the pickle, and memory-mapped, which reads
no weight. Every storage is an uncompressed member of the archive; the addresses of the mapped tensors tell their bytes.
Format: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

from __future__ import annotations

import logging
import mmap
import os
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, OutOfMemoryError, enough_memory, reading, shown
from .safetensors_header import check_name, check_shape
from .tensors import TensorEntry, WeightFile

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

_ZIP_BEGIN = b"PK\3\4"
_LOCAL_HEADER = struct.Struct("<26xHH")  # a zip member's own header; the fields are the lengths of name and extra

# By torch's names, because an old torch does not have every dtype.
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip

# In older versions, a crafted file can run code in spite of weights_only (CVE-2025-32434, CVE-2026-24747).
_SAFE_TORCH = (2, 10)


def read_torch_file(path: Path) -> WeightFile:
    """The tensors of the file *path* and their places; no weight is read.

    Raises:
        CheckpointError: it is not such a file, holds more than tensors, or is damaged.
        StorageError: the file cannot be read.
    """
    with reading(path):
        storages = _storage_spans(path)
        tensors = _load(path)
        base = _mapping_begin(tensors, storages, path)
        entries = [_entry(name, tensor, base, path) for name, tensor in tensors.items()]
        return WeightFile(tuple(sorted(entries, key=lambda entry: (entry.begin, entry.name))), path.stat().st_size)


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a stored one: ``F16`` is ``torch.float16``."""
    import torch

    found: torch.dtype = getattr(torch, next(name for name, stored in _DTYPES.items() if stored == dtype))
    return found


def stored_dtype(dtype: torch.dtype) -> str | None:
    """What a torch *dtype* is stored as, ``F16`` for ``torch.float16``; None for one that is not plain numbers."""
    return _DTYPES.get(str(dtype).removeprefix("torch."))


def warn_of_old_torch() -> None:
    """Log a warning where the installed torch has known security holes in reading ``.bin`` files."""
    import torch

    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _SAFE_TORCH:
        _log.warning(
            "torch %s reads .bin and .pt files with known security holes; for files you do not trust, use torch %d.%d",
            torch.__version__,
            *_SAFE_TORCH,
        )


def _storage_spans(path: Path) -> Mapping[int, int]:
    """The sizes of the non-empty storages in the archive, by their first byte in the file."""
    spans: dict[int, int] = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            if os.pread(file.fileno(), len(_ZIP_BEGIN), 0) != _ZIP_BEGIN:
                raise zipfile.BadZipFile("Something stands in front of the zip file")  # torch does not read it
            members = archive.infolist()
            names = [member.filename.split("/")[-1] for member in members]
            if "constants.pkl" in names:
                raise CheckpointError(f"{path}: is a TorchScript archive; save the state_dict of its model instead")
            if "data.pkl" not in names:
                raise CheckpointError(
                    f"{path}: is a zip archive, but none that torch.save wrote; get the weights again"
                )
            for member in members:
                if member.compress_type != zipfile.ZIP_STORED:  # torch never does, and it may unpack to any size
                    raise CheckpointError(f"{path}: {member.filename} is compressed; load and save it with torch")
            unpacked, size = sum(member.file_size for member in members), path.stat().st_size
            if unpacked > size:
                raise CheckpointError(
                    f"{path}: its members claim {unpacked:,} bytes, but the file has {size:,}; copy it again"
                )
            for member in members:
                *_, folder, name = ("", *member.filename.split("/"))
                if name == "byteorder" and archive.read(member) != b"little":
                    raise CheckpointError(f"{path}: was written on a big-endian machine; load and save it on this one")
                if folder != "data" or not member.file_size:
                    continue
                archive.open(member).close()  # compares the member's header with the archive's directory
                file.seek(member.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                spans[member.header_offset + _LOCAL_HEADER.size + sum(lengths)] = member.file_size
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as error:  # zipfile raises errors of many kinds at damaged archives
        raise CheckpointError(
            f"{path}: is damaged, or not in the format that torch writes since version 1.6 ({_first_line(error)}); "
            "copy it again, or load and save it with a newer torch"
        ) from error
    return spans


def _load(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        with warnings.catch_warnings(), enough_memory(str(path)):
            warnings.simplefilter("ignore")  # they are for the file's author
            # As text: old versions of torch cannot map a Path.
            content: Any = torch.load(os.fspath(path), map_location="cpu", mmap=True, weights_only=True)
    except (OSError, OutOfMemoryError):
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and may run code when it is loaded; do not load it, and get the "
            "checkpoint as safetensors or from another source"
        ) from error
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise CheckpointError(f"{path}: cannot be read by torch ({_first_line(error)}); copy it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not tensors by name; save the state_dict alone"
        )
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: the name {shown(name)} is no text; save the state_dict alone")
        try:
            check_name(name)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; rename or remove it") from error
        if not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path}: {name} is a {type(tensor).__name__}, no tensor; save the state_dict alone")
        is_dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested
        if not is_dense or tensor.is_quantized or tensor.is_neg():
            raise CheckpointError(
                f"{path}: {name} is sparse, nested, quantised, negated or without data; save it as a plain tensor first"
            )
    return content


def _mapping_begin(tensors: Mapping[str, torch.Tensor], storages: Mapping[int, int], path: Path) -> int:
    """The address that the file is mapped at: the only one at which every tensor's storage is in the archive."""
    sizes = {
        storage.data_ptr(): storage.nbytes()
        for tensor in tensors.values()
        if (storage := tensor.untyped_storage()).nbytes()
    }
    if not sizes:
        return 0
    fitting = [
        base
        for base in (min(sizes) - begin for begin in storages)
        if base % mmap.PAGESIZE == 0 and all(storages.get(address - base) == size for address, size in sizes.items())
    ]
    if len(fitting) != 1:
        raise CheckpointError(f"{path}: its storages are not where its pickle says; load and save it with torch")
    return fitting[0]


def _entry(name: str, tensor: torch.Tensor, base: int, path: Path) -> TensorEntry:
    dtype, shape = stored_dtype(tensor.dtype), tuple(tensor.shape)
    if dtype is None:
        raise CheckpointError(f"{path}: {name} is stored as {tensor.dtype}, which cannot be converted; cast it first")
    try:
        check_shape(name, shape)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; rename or remove it") from error
    item, num_bytes = tensor.element_size(), tensor.numel() * tensor.element_size()
    if not num_bytes:
        return TensorEntry(name, dtype, shape, 0, 0, 0)
    begin = tensor.untyped_storage().data_ptr() - base + int(tensor.storage_offset()) * item
    if num_bytes > path.stat().st_size:
        raise CheckpointError(
            f"{path}: {name} repeats what is stored to {num_bytes:,} bytes, more than the file has; "
            "save a contiguous copy of it"
        )
    last = sum((size - 1) * stride for size, stride in zip(shape, tensor.stride(), strict=True))
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    return TensorEntry(name, dtype, shape, begin, begin + (last + 1) * item, num_bytes, strides)


def _first_line(error: Exception) -> str:
    """The message of *error* without the trace that torch adds."""
    return next(iter(str(error).splitlines()), type(error).__name__)
