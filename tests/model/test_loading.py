"""Tensors that are brought into memory a block at a time are what is stored, by way of page-locked memory as well."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from s4convert.checkpoint import Checkpoint
from s4convert.model import loading
from s4convert.model.loading import load_tensor, row_reader, stored_rows
from tests.support.synthetic import Spec, write_checkpoint


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("block_bytes", [100, 1 << 20])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_threads_load_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, block_bytes: int, device: str
) -> None:
    make = torch.empty

    def lock(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        return make(*shape, **options)  # without a GPU no memory can be page-locked

    monkeypatch.setattr(torch, "empty", lock)
    monkeypatch.setattr(loading, "_BLOCK_BYTES", block_bytes)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(dtype=dtype, num_shards=2)))
    tensors = [tensor for tensor in checkpoint.tensors.values() if tensor.shape]
    read = row_reader(checkpoint, device)
    loaded = [torch.zeros(tensor.shape) for tensor in tensors]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(partial(load_tensor, read=read), loaded, tensors))
    for tensor, into in zip(tensors, loaded, strict=True):
        assert torch.equal(into, stored_rows(checkpoint, tensor).float()), tensor.name
