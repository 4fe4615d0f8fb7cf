"""What people would use in place of a conversion, and its floors, each as a command of its own.

``python -m benchmarks.rivals NAME IN OUT MASK``: ``hash`` (sha256 of IN's files on all processors), ``safetensors``
(load a shard, edit it, save it) and ``transformers`` (``from_pretrained``, edit, ``save_pretrained``). None of the
latter two brings anything to the disk, hashes or checks anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK_BYTES = 1 << 20


def files_of(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def hash_all(source: Path, out: Path, mask: Path) -> None:
    def hash_one(path: Path) -> None:
        digest, buffer = hashlib.sha256(), bytearray(BLOCK_BYTES)
        with path.open("rb", 0) as file:
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])

    with ThreadPoolExecutor(os.cpu_count()) as executor:
        list(executor.map(hash_one, sorted(files_of(source), key=lambda path: -path.stat().st_size)))


def edit(tensors: dict[str, Any], mask: Path, num_heads: int) -> None:
    """Zero the pruned heads and multiply the kept columns of ``o_proj`` by heads over kept heads."""
    pruned = {int(layer): heads for layer, heads in json.loads(mask.read_text())["pruned_heads"].items()}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "layers" not in parts or "self_attn" not in parts or "vision_tower" in name:
            continue
        heads = pruned.get(int(parts[parts.index("layers") + 1]), [])
        if parts[-2] == "o_proj":
            by_head = tensor.view(tensor.shape[0], num_heads, -1)
            by_head *= num_heads / (num_heads - len(heads))
            by_head[:, heads] = 0
        else:
            tensor.view(num_heads, -1)[heads] = 0


def load_edit_save(source: Path, out: Path, mask: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    out.mkdir()
    num_heads = heads_of(source)
    for path in files_of(source):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, out / path.name)
            continue
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        edit(tensors, mask, num_heads)
        save_file(tensors, out / path.name, metadata)


def save_pretrained(source: Path, out: Path, mask: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(source, torch_dtype=torch.float16)
    with torch.no_grad():
        edit(model.state_dict(), mask, heads_of(source))
    model.save_pretrained(out)


def heads_of(source: Path) -> int:
    config = json.loads((source / "config.json").read_text())
    return int(config.get("text_config", config)["num_attention_heads"])


RIVALS: dict[str, Callable[[Path, Path, Path], None]] = {
    "hash": hash_all,
    "safetensors": load_edit_save,
    "transformers": save_pretrained,
}

if __name__ == "__main__":
    RIVALS[sys.argv[1]](*map(Path, sys.argv[2:]))
