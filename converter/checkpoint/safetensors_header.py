"""The header of a safetensors file, parsed more strictly than the reference parser does.

Beside what the reference rejects, it rejects what is ambiguous: duplicate tensor names and metadata keys, unknown
fields, white space before ``{``, unsafe names. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import strict_json
from ..errors import CheckpointError, enough_memory, reading, shown
from .tensors import TensorEntry, WeightFile

MAX_HEADER_BYTES = 100_000_000  # the reference parser's limit
LENGTH_BYTES = 8
MAX_NAME = 1000  # characters of a tensor's name, which messages show
_MAX_INTEGER = 2**64 - 1
_METADATA_KEY = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}

DTYPE_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class SafetensorsHeader(WeightFile):
    """The header of a safetensors file, whose tensors begin at byte *data_begin*."""

    metadata: Mapping[str, str]
    data_begin: int


def read_header(path: Path) -> SafetensorsHeader:
    """The header of the safetensors file *path*; CheckpointError where the file is not well-formed."""
    with enough_memory(f"{path}: its header"), reading(path), path.open("rb") as file:
        file_size = os.fstat(file.fileno()).st_size
        length_field = file.read(LENGTH_BYTES)
        if len(length_field) < LENGTH_BYTES:
            raise CheckpointError(f"{path}: {file_size} bytes are too few for a safetensors file; copy it again")
        length = int.from_bytes(length_field, "little")
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"{path}: its header claims {length:,} bytes, more than {MAX_HEADER_BYTES:,}; "
                "this is not a safetensors file"
            )
        if length > file_size - LENGTH_BYTES:
            raise CheckpointError(f"{path}: the header ends past the end of the file; copy the file again")
        try:
            return parse_header(file.read(length), file_size)
        except ValueError as error:
            raise CheckpointError(f"{path}: malformed safetensors header: {error}") from error


def parse_header(raw: bytes, file_size: int) -> SafetensorsHeader:
    """The header whose JSON text is *raw*, in a file of *file_size* bytes; ValueError where it is malformed."""
    if not raw.startswith(b"{"):
        raise ValueError("it does not start with '{'")
    try:
        fields = strict_json.parse(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    metadata = fields.pop(_METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ must map names to strings")
    for text in (*metadata, *metadata.values()):
        _check_unicode(text)
    data_begin = LENGTH_BYTES + len(raw)
    entries = sorted(
        (_parse_entry(name, entry, data_begin) for name, entry in fields.items()), key=lambda e: (e.begin, e.end)
    )
    position = data_begin
    for entry in entries:
        if entry.begin != position:
            kind = "overlaps the one before it" if entry.begin < position else "leaves a gap before it"
            raise ValueError(f"tensor {entry.name!r} {kind}")
        position = entry.end
    if position != file_size:
        raise ValueError(f"the tensors end at byte {position}, the file at byte {file_size}")
    return SafetensorsHeader(tuple(entries), file_size, MappingProxyType(metadata), data_begin)


def format_header(tensors: Sequence[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """The header (length field and JSON) of a file that holds *tensors*, (name, dtype, shape, bytes), in that order.

    Like the reference, it pads the JSON with spaces to a multiple of 8 bytes.
    """
    fields: dict[str, Any] = {_METADATA_KEY: {"format": "pt"}}  # transformers up to 4.45 fails without
    position = 0
    for name, dtype, shape, num_bytes in tensors:
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + num_bytes]}
        position += num_bytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _parse_entry(name: str, entry: Any, data_begin: int) -> TensorEntry:
    check_name(name)
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise ValueError(f"tensor {name!r} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise ValueError(f"tensor {name!r} has unknown dtype {shown(dtype)}")
    if not isinstance(shape, list) or not all(_is_size(size) for size in shape):
        raise ValueError(f"tensor {name!r} has a shape that is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset) for offset in offsets):
        raise ValueError(f"tensor {name!r} must have two data_offsets")
    begin, end = offsets
    if end < begin:
        raise ValueError(f"tensor {name!r} ends before it begins")
    check_shape(name, shape)
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != (end - begin) * 8:
        raise ValueError(f"tensor {name!r} of {dtype} {shown(shape)} does not fill its {end - begin} bytes")
    return TensorEntry(name, dtype, tuple(shape), data_begin + begin, data_begin + end, end - begin)


def check_name(name: str) -> None:
    """Raise ValueError where the *name* of a tensor is not safe, or too long to be shown."""
    if not 0 < len(name) <= MAX_NAME or "\0" in name or ".." in name or name == _METADATA_KEY:
        raise ValueError(f"tensor name {shown(name)} is not safe")
    _check_unicode(name)


def check_shape(name: str, shape: Sequence[int]) -> None:
    """Raise ValueError where the *shape* of the tensor *name* is not safe."""
    # Zeros are left out: they would hide the other sizes.
    if prod(size for size in shape if size) > _MAX_INTEGER // 64:
        raise ValueError(f"tensor {name!r} has an absurd shape")


def _check_unicode(text: str) -> None:
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"lone surrogate in {shown(text)}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_INTEGER
