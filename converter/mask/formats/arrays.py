"""Reads ``head_mask`` arrays [layers, heads] from .npy, .pt/.pth and .safetensors files.

No code in a file is run: no pickled numpy objects, and torch reads with ``weights_only``. The shape is checked before
the values are read. torch, which takes seconds to import, is imported only for its own files.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...checkpoint.dtypes import ITEM_BYTES, decode
from ...checkpoint.safetensors_header import LENGTH_BYTES, parse_header
from ...checkpoint.torch_file import stored_dtype, warn_of_old_torch
from ...errors import MaskError, shown
from .content import MAX_BYTES

if TYPE_CHECKING:
    import torch


Shape = tuple[int, int]  # layers, heads
Rows = list[list[Any]]

# The dtypes of safetensors that numpy reads; for the others see decode. Booleans are read as bytes in all formats, so
# that a byte of 2 is refused and not taken for true.
_NUMPY_DTYPES = {
    "BOOL": "<u1", "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2",
    "U32": "<u4", "I32": "<i4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip


# The start of a .npy file: magic, version, length of the header. numpy's own parser raises and warns in many ways at
# damaged headers. Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
_NPY_START = re.compile(rb"\x93NUMPY(?:\x01\x00(..)|\x02\x00(....))", re.DOTALL)
_NPY_HEADER = re.compile(
    r"\{'descr': '([^'\n]{1,40})', 'fortran_order': (True|False), "
    r"'shape': \(((?:[0-9]{1,18}, ?){0,32}(?:[0-9]{1,18})?)\), ?\}\s*",
    re.ASCII,
)
_NUMBERS = re.compile(r"[|<>](?:b1|[iu][1248]|f[248])", re.ASCII)


def _read_npy(content: bytes, shape: Shape) -> tuple[Rows, str]:
    start = _NPY_START.match(content)
    begin = start.end() if start else 0
    end = begin + int.from_bytes(start[1] or start[2], "little") if start else 0
    header = _NPY_HEADER.fullmatch(content[begin:end].decode("latin-1"))
    if header is None or end > len(content):
        raise MaskError("is not a .npy file of numbers, or damaged")
    descr, by_column, sizes = header[1], header[2] == "True", header[3]
    if not _NUMBERS.fullmatch(descr):
        raise MaskError(f"is a NumPy array of {shown(descr)}, not of 0/1 or booleans")
    _check_shape(tuple(int(size) for size in sizes.replace(",", " ").split()), shape)
    dtype = np.dtype("u1" if "b" in descr else descr)
    values = content[end:]
    expected = shape[0] * shape[1] * dtype.itemsize
    if len(values) != expected:
        raise MaskError(f"has {len(values)} bytes of values, where {expected} are due; it is damaged")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if by_column else "C").tolist(), "NumPy array"


def _read_safetensors(content: bytes, shape: Shape) -> tuple[Rows, str]:
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    if len(content) < LENGTH_BYTES or length > len(content) - LENGTH_BYTES:
        raise MaskError("is not a safetensors file, or cut off")
    try:
        header = parse_header(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content))
    except ValueError as error:
        raise MaskError(f"malformed safetensors header: {error}") from error
    if len(header.entries) != 1:
        raise MaskError(f"holds {len(header.entries)} tensors; a mask is one tensor [layers, heads]")
    (entry,) = header.entries
    _check_shape(entry.shape, shape)
    values = content[entry.begin : entry.end]
    if entry.dtype in _NUMPY_DTYPES:
        array: Any = np.frombuffer(values, _NUMPY_DTYPES[entry.dtype])
    elif entry.dtype in ITEM_BYTES:
        array = decode(values, entry.dtype)
    else:
        raise MaskError(f"{shown(entry.name)} is of {entry.dtype}, not of 0/1 or booleans")
    return array.reshape(shape).tolist(), "safetensors array"


def _read_torch(content: bytes, shape: Shape) -> tuple[Rows, str]:
    tensor = _load_tensor(content)
    import torch

    is_plain = tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type == "cpu"
    if not is_plain or stored_dtype(tensor.dtype) is None:
        raise MaskError("is a sparse, quantised, complex, nested or empty tensor, not one of 0/1 or booleans")
    _check_shape(tuple(tensor.shape), shape)
    numbers = tensor.detach().view(torch.uint8) if tensor.dtype == torch.bool else tensor
    return numbers.tolist(), "torch tensor"


def _load_tensor(content: bytes) -> torch.Tensor:
    """The only tensor of the file, bare or in a dict."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            damaged = archive.testzip() if unpacked <= MAX_BYTES else None  # torch does not check the checksums
    except Exception as error:  # zipfile, and torch below, raise errors of any kind at damaged archives
        raise MaskError("is not in the format that torch writes since version 1.6, or damaged") from error
    if unpacked > MAX_BYTES:
        raise MaskError(f"unpacks to {unpacked:,} bytes, too many for a mask")
    if damaged is not None:
        raise MaskError(f"is damaged: the checksum of {shown(damaged)} is another")
    import torch

    warn_of_old_torch()
    try:
        loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise MaskError("cannot be read by torch as tensors alone (weights_only); save the mask's tensor") from error
    tensors = list(loaded.values()) if isinstance(loaded, dict) else [loaded]
    if len(tensors) != 1 or not isinstance(tensors[0], torch.Tensor):
        raise MaskError(f"holds {shown(type(loaded).__name__)}; a mask is one tensor [layers, heads]")
    return tensors[0]


def _check_shape(found: tuple[int, ...], shape: Shape) -> None:
    if tuple(found) != shape:
        raise MaskError(
            f"is an array of shape {shown(list(found))}, but the checkpoint has {shape[0]} layers of {shape[1]} heads"
        )


ARRAY_READERS: Mapping[str, Callable[[bytes, Shape], tuple[Rows, str]]] = {
    ".npy": _read_npy, ".pt": _read_torch, ".pth": _read_torch, ".safetensors": _read_safetensors
}  # fmt: skip
