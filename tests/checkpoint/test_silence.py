"""Which heads of a checkpoint are silent already."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from s4convert.checkpoint import Checkpoint
from tests.support import seams
from tests.support.synthetic import Spec, encode, read_safetensors, write_checkpoint, write_safetensors


def write_output_projection(path: Path, weights: np.ndarray, dtype: str) -> Checkpoint:
    """A checkpoint of three heads of width 2 whose layer 1 has *weights* [40, 6] in its ``o_proj``."""
    write_checkpoint(path, Spec(num_kv_heads=3, head_dim=2, hidden_size=40, dtype=dtype))
    tensors = read_safetensors(path / "model.safetensors")
    name = "language_model.model.layers.1.self_attn.o_proj.weight"
    tensors[name] = (dtype, (40, 6), encode(weights.astype(np.float32), dtype))
    write_safetensors(path / "model.safetensors", tensors)
    return Checkpoint.open(path)


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_a_head_is_silent_when_all_its_columns_are_zero_whatever_their_sign(tmp_path: Path, dtype: str) -> None:
    weights = np.ones((40, 6))
    weights[:, 2:4] = -0.0
    checkpoint = write_output_projection(tmp_path / "checkpoint", weights, dtype)
    assert checkpoint.silent_heads(0) == ()
    assert checkpoint.silent_heads(1) == (1,)


@pytest.mark.parametrize("block_bytes", [1, 24, seams.BLOCK_BYTES])
@pytest.mark.parametrize("row", [0, 15, 16, 17, 39])
def test_one_weight_in_any_row_makes_a_head_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, block_bytes: int
) -> None:
    seams.read_in_blocks_of(monkeypatch, block_bytes)
    weights = np.zeros((40, 6))
    weights[row, 5] = 2.0**-24
    checkpoint = write_output_projection(tmp_path / "checkpoint", weights, "F16")
    assert checkpoint.silent_heads(1) == (0, 1)
