"""The large synthetic checkpoints that the benchmarks convert, and a mask for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from s4convert.checkpoint.safetensors_header import format_header
from tests.support.synthetic import Spec, config, encode, shapes, write_checkpoint

PRUNED_OF_16 = (0, 3, 4, 9, 13)  # about 30 %


LARGE = Spec(
    num_layers=18,
    num_kv_heads=16,
    head_dim=128,
    hidden_size=2048,
    intermediate_size=5504,
    vocab_size=32000,
    num_shards=4,
)  # 2.1 GB of fp16, Llama's proportions: 101 MB a layer, 262 MB of embeddings
SMALL = replace(LARGE, num_layers=4, head_dim=32, hidden_size=512, intermediate_size=1376, vocab_size=13000)  # 50 MB


def write_with_mask(path: Path, spec: Spec) -> tuple[Path, Path]:
    """The checkpoint of *spec* in the new directory *path*, and beside it a mask that touches every layer."""
    checkpoint = write_checkpoint(path, spec)
    mask = path.with_suffix(".json")
    mask.write_text(json.dumps({"pruned_heads": {str(layer): PRUNED_OF_16 for layer in range(spec.num_layers)}}))
    return checkpoint, mask


def write_large(path: Path, spec: Spec) -> Path:
    """As :func:`~tests.support.synthetic.write_checkpoint`, in fp16, a tensor at a time.

    Numbers come from one pool, those of each tensor from another place in it. The tensors stand in the shards in their
    order, as stock code saves them.
    """
    path.mkdir(parents=True)
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    pool = np.frombuffer(encode(generator.normal(0, 0.02, (64 << 20) + 7).astype(np.float32), "F16"), np.uint16)
    sizes = {name: int(np.prod(shape)) for name, shape in shapes(spec).items()}
    bound, filled, shards = sum(sizes.values()) / spec.num_shards, 0, [list[str]() for _ in range(spec.num_shards)]
    for name, size in sizes.items():
        shards[min(spec.num_shards - 1, int(filled / bound))].append(name)
        filled += size
    weight_map = {}
    for number, names in enumerate(shards):
        shard = f"model-{number + 1:05}-of-{spec.num_shards:05}.safetensors"
        weight_map.update(dict.fromkeys(names, shard))
        with (path / shard).open("wb") as file:
            file.write(format_header([(name, "F16", shapes(spec)[name], 2 * sizes[name]) for name in names]))
            for name in names:
                at, left = int(generator.integers(len(pool))), sizes[name]
                while left:
                    part = pool[at : at + left]
                    file.write(part.tobytes())
                    at, left = 0, left - len(part)
    index = {"metadata": {"total_size": 2 * sum(sizes.values())}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(config(spec)))
    return path


def write_mask(path: Path, spec: Spec, share: float) -> Path:
    """A mask that takes *share* of the heads of every layer, other ones in each."""
    generator = np.random.Generator(np.random.PCG64(spec.seed))
    count = max(1, round(share * spec.num_heads))
    pruned = {
        layer: sorted(generator.choice(spec.num_heads, count, replace=False).tolist())
        for layer in range(spec.num_layers)
    }
    path.write_text(json.dumps({"pruned_heads": pruned}))
    return path
