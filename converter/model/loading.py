"""Brings stored tensors into memory, a block of rows at a time, so that loading takes no second copy of a tensor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from ..checkpoint import Checkpoint, StoredTensor
from ..checkpoint.torch_file import torch_dtype

if TYPE_CHECKING:
    import torch

# (tensor, first row, number of rows) -> these rows, until the same thread asks for others.
RowReader: TypeAlias = "Callable[[StoredTensor, int, int], torch.Tensor]"

_BLOCK_BYTES = 16 << 20  # read at a time


def load_tensor(into: torch.Tensor, tensor: StoredTensor, read: RowReader) -> None:
    """Copy *tensor*, a block of rows that *read* gives at a time, *into* one of any dtype and on any device."""
    import torch

    block = max(1, _BLOCK_BYTES // tensor.row_bytes) if tensor.is_contiguous else tensor.num_rows
    with torch.no_grad():
        for first in range(0, tensor.shape[0], block):
            count = min(block, tensor.shape[0] - first)
            into[first : first + count] = read(tensor, first, count).to(into.device)  # and only there to its dtype


def row_reader(checkpoint: Checkpoint, device: str | torch.device) -> RowReader:
    """Reads tensors of *checkpoint* that are to be on *device*."""
    import torch

    return _PageLocked(checkpoint) if torch.device(device).type == "cuda" else partial(stored_rows, checkpoint)


def stored_rows(checkpoint: Checkpoint, tensor: StoredTensor, first: int = 0, count: int | None = None) -> torch.Tensor:
    """Rows [first, first + count) of *tensor* in its stored dtype; all from *first* on where *count* is None."""
    import torch

    data = checkpoint.read_bytes(tensor, first, count)
    return _as_rows(torch.frombuffer(data, dtype=torch.uint8), tensor)


def float_rows(checkpoint: Checkpoint, tensor: StoredTensor, first: int, count: int) -> torch.Tensor:
    """The same in float32, as :meth:`Checkpoint.read_rows` gives them, which may compute them."""
    import torch

    return torch.from_numpy(checkpoint.read_rows(tensor, first, count))


class _PageLocked:
    """Reads into page-locked memory, from where a GPU fetches at full speed; every thread has a block of its own."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._own = checkpoint, threading.local()

    def __call__(self, tensor: StoredTensor, first: int, count: int) -> torch.Tensor:
        import torch

        num_bytes = count * tensor.row_bytes
        if num_bytes > _BLOCK_BYTES or not tensor.is_contiguous:
            return stored_rows(self._checkpoint, tensor, first, count)
        if not hasattr(self._own, "block"):
            self._own.block = torch.empty(_BLOCK_BYTES, dtype=torch.uint8, pin_memory=True)
        rows: torch.Tensor = self._own.block[:num_bytes]
        self._checkpoint.read_into(rows.numpy().data, tensor, first, count)
        return _as_rows(rows, tensor)


def _as_rows(data: torch.Tensor, tensor: StoredTensor) -> torch.Tensor:
    """The bytes *data* of rows of *tensor* as its numbers."""
    shape = (-1, *tensor.shape[1:]) if tensor.shape else ()
    return data.view(torch_dtype(tensor.dtype)).reshape(shape)
