"""The large synthetic checkpoints that the benchmarks convert, and a mask for them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from tests.support.synthetic import Spec, write_checkpoint

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
