"""The fingerprint of a language model: the same wherever its weights lie, another as soon as one layer is another."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.fingerprint import bytes_read
from s4convert.checkpoint import Checkpoint
from tests.conftest import MINI_LLAVA
from tests.support.synthetic import SEVEN_B, Spec, encode, read_safetensors, write_checkpoint, write_safetensors

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16)


def fingerprint(path: Path) -> str:
    return Checkpoint.open(path).fingerprint


def as_torch_file(source: Path, path: Path) -> Path:
    """A copy of *source*, which is in one file, with its weights in ``pytorch_model.bin``."""
    tensors = read_safetensors(source / "model.safetensors")
    shutil.copytree(source, path)
    (path / "model.safetensors").unlink()
    arrays = {n: np.frombuffer(data, "<f2").reshape(shape).copy() for n, (_, shape, data) in tensors.items()}
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path / "pytorch_model.bin")
    return path


def test_it_is_the_same_for_a_copy_for_other_shards_and_for_torch_files(tmp_path: Path) -> None:
    one = write_checkpoint(tmp_path / "one", SPEC)
    copy = shutil.copytree(one, tmp_path / "copy")
    three = write_checkpoint(tmp_path / "three", replace(SPEC, num_shards=3))
    torch_file = as_torch_file(one, tmp_path / "torch")
    assert {fingerprint(path) for path in (one, copy, three, torch_file)} == {fingerprint(one)}


@pytest.mark.parametrize("layer", range(3))
@pytest.mark.parametrize("name", ["self_attn.q_proj", "mlp.down_proj", "input_layernorm"])
def test_it_is_another_where_one_tensor_of_one_layer_is_another(tmp_path: Path, layer: int, name: str) -> None:
    path = write_checkpoint(tmp_path / "in", SPEC)
    before, file = fingerprint(path), path / "model.safetensors"
    tensors = read_safetensors(file)
    full = f"language_model.model.layers.{layer}.{name}.weight"
    dtype, shape, _ = tensors[full]
    other = np.random.Generator(np.random.PCG64(9)).normal(0, 0.3, shape).astype(np.float32)
    write_safetensors(file, tensors | {full: (dtype, shape, encode(other, dtype))})
    assert fingerprint(path) != before


def test_what_is_not_the_language_models_makes_no_difference(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "in", SPEC)
    before, file = fingerprint(path), path / "model.safetensors"
    tensors = read_safetensors(file)
    tower = next(name for name in tensors if name.startswith("vision_tower"))
    dtype, shape, data = tensors[tower]
    write_safetensors(file, tensors | {tower: (dtype, shape, bytes(len(data)))})
    (path / "generation_config.json").write_text("{}")
    assert fingerprint(path) == before


def test_it_never_changes_from_one_version_to_the_next() -> None:
    """Masks, scores and statistics carry it about."""
    assert fingerprint(MINI_LLAVA) == "c4d6007856a32bfb6dc6fc8bbf394dd6"


def test_of_a_7b_model_less_than_50_mb_are_read(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "in", SEVEN_B, sparse=True))
    before = bytes_read()
    assert checkpoint.fingerprint
    assert 1e6 < bytes_read() - before < 50e6
