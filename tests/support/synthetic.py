"""Synthetic checkpoints of any geometry: seeded random weights, written with numpy and json alone."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HUGGING_FACE, ORIGINAL = "Hugging Face", "original"
_PREFIX = {HUGGING_FACE: "language_model.model.", ORIGINAL: "model."}
_HEAD = {HUGGING_FACE: "language_model.lm_head.weight", ORIGINAL: "lm_head.weight"}
_TEXT_MODEL = {"llama": "llava_llama", "mistral": "llava_mistral", "qwen2": "llava_qwen"}


@dataclass(frozen=True)
class Spec:
    """What a synthetic checkpoint is like; qwen2 has biases on q, k and v."""

    num_layers: int = 2
    num_kv_heads: int = 2
    heads_per_group: int = 1
    head_dim: int = 4
    hidden_size: int = 8
    intermediate_size: int = 12
    vocab_size: int = 32
    dtype: str = "F16"
    text_model: str = "llama"
    layout: str = HUGGING_FACE
    num_shards: int = 1
    seed: int = 0

    @property
    def num_heads(self) -> int:
        return self.num_kv_heads * self.heads_per_group


# The language model of LLaVA-1.5-7B.
SEVEN_B = Spec(
    num_layers=32,
    num_kv_heads=32,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=11008,
    vocab_size=32000,
    num_shards=3,
)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float32 *values* in the stored dtype; bfloat16 by truncation, which random weights may take."""
    if dtype == "BF16":
        return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape, in the order of the layers."""
    prefix, hidden = _PREFIX[spec.layout], spec.hidden_size
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    names: dict[str, tuple[int, ...]] = {prefix + "embed_tokens.weight": (spec.vocab_size, hidden)}
    for layer in range(spec.num_layers):
        at = f"{prefix}layers.{layer}."
        for projection, rows in (("q", query), ("k", key), ("v", key)):
            names[f"{at}self_attn.{projection}_proj.weight"] = (rows, hidden)
            if spec.text_model == "qwen2":
                names[f"{at}self_attn.{projection}_proj.bias"] = (rows,)
        names[f"{at}self_attn.o_proj.weight"] = (hidden, query)
        names[f"{at}mlp.gate_proj.weight"] = (spec.intermediate_size, hidden)
        names[f"{at}mlp.up_proj.weight"] = (spec.intermediate_size, hidden)
        names[f"{at}mlp.down_proj.weight"] = (hidden, spec.intermediate_size)
        names[f"{at}input_layernorm.weight"] = (hidden,)
        names[f"{at}post_attention_layernorm.weight"] = (hidden,)
    names[prefix + "norm.weight"] = (hidden,)
    names[_HEAD[spec.layout]] = (spec.vocab_size, hidden)
    # A tower's keys contain the names of the language model's: nothing of it may ever be touched.
    tower = "vision_tower.vision_model." if spec.layout == HUGGING_FACE else "model.vision_tower.vision_tower."
    for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
        names[f"{tower}encoder.layers.0.self_attn.{projection}.weight"] = (hidden, hidden)
    return names


def config(spec: Spec) -> dict[str, Any]:
    text = {
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    if spec.layout == ORIGINAL:
        return {"model_type": _TEXT_MODEL[spec.text_model], "mm_vision_tower": "elsewhere", **text}
    return {"model_type": "llava", "text_config": {"model_type": spec.text_model, **text}}


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes | int]]) -> None:
    """A safetensors file of (dtype, shape, data) by name; a number in place of data is a hole of so many bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        size = data if isinstance(data, int) else len(data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, data in tensors.values():
            if isinstance(data, int):
                file.seek(data, os.SEEK_CUR)
            else:
                file.write(data)
        file.truncate()


def write_checkpoint(path: Path, spec: Spec, *, sparse: bool = False) -> Path:
    """Write the checkpoint of *spec* to the new directory *path*; weights are random, or holes where it is *sparse*."""
    path.mkdir(parents=True)
    generator = np.random.Generator(np.random.PCG64(spec.seed))

    def data(shape: tuple[int, ...]) -> bytes | int:
        if sparse:
            return math.prod(shape) * {"BF16": 2, "F16": 2, "F32": 4}[spec.dtype]
        return encode(generator.normal(0, 0.3, shape).astype(np.float32), spec.dtype)

    tensors = {name: (spec.dtype, shape, data(shape)) for name, shape in shapes(spec).items()}
    names = list(tensors)
    if spec.num_shards == 1:
        write_safetensors(path / "model.safetensors", tensors)
    else:
        weight_map = {}
        for number in range(spec.num_shards):
            shard = f"model-{number + 1:05}-of-{spec.num_shards:05}.safetensors"
            part = names[number :: spec.num_shards]
            write_safetensors(path / shard, {name: tensors[name] for name in part})
            weight_map.update(dict.fromkeys(part, shard))
        (path / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
        )
    (path / "config.json").write_text(json.dumps(config(spec)))
    (path / "generation_config.json").write_text('{"max_length": 20}')
    (path / "assets").mkdir()
    (path / "assets" / "notes.txt").write_text("a file in a subdirectory")
    return path


def read_safetensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """(dtype, shape, data) by name of a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        name: (entry["dtype"], tuple(entry["shape"]), raw[8 + length :][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }
