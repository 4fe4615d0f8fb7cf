"""Time and peak memory of the hidden states' check at the shape of LLaVA-1.5-7B, its tower and projector included.

``python -m benchmarks.verification [--layers N] [--device cpu|cuda] [--directory DIR]`` makes a checkpoint of random
weights, converts it without a check, and times the check alone, in a process of its own: the probe through tower and
projector, and the three models. DIR needs 1.7 GB and 0.9 GB a layer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.saliency_memory import SHAPE_7B, SPREAD, peaks, write_layers
from s4convert import convert
from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from s4convert.mask import HeadMask

VOCABULARY = 32064
PRUNED = range(0, 32, 3)
TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


def write_llava(directory: Path, num_layers: int) -> None:
    """A checkpoint with the shape of LLaVA-1.5-7B in the new *directory*, and the tokenizer of the mini LLaVA."""
    import torch
    import transformers

    from tests.support.synthetic import write_safetensors

    spec = replace(SHAPE_7B, num_layers=num_layers)
    write_layers(directory, spec)
    for file in MINI_LLAVA.iterdir():
        if not file.name.startswith("model"):
            shutil.copy(file, directory)
    edit(directory / "config.json", {"vision_config": TOWER, "text_config": text_config(spec.num_layers)})
    edit(directory / "config.json", {"image_seq_length": 576})
    side = TOWER["image_size"]
    image = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    edit(directory / "preprocessor_config.json", image)
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration(transformers.AutoConfig.from_pretrained(directory))
    generator = np.random.Generator(np.random.PCG64(1))
    rest: dict[str, Any] = {}
    for name, tensor in model.state_dict().items():
        if ".layers." in name and "vision_tower" not in name:
            continue
        stored = _stored_name(name)
        if tensor.is_floating_point():
            numbers = generator.standard_normal(tuple(tensor.shape), dtype=np.float32)
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            rest[stored] = ("F16", tuple(tensor.shape), (centre + SPREAD * numbers).astype("<f2").tobytes())
    write_safetensors(directory / "model-rest.safetensors", rest)
    index = directory / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map = {name: file for name, file in weight_map.items() if file != "model-rest.safetensors"}
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map | dict.fromkeys(rest, "model-rest.safetensors")})
    )


def _stored_name(name: str) -> str:
    """*name*, of a parameter in any version of transformers, as checkpoints on the Hub have it."""
    name = name.removeprefix("model.")
    if "lm_head" in name:
        return "language_model.lm_head.weight"
    if name.startswith("language_model."):
        return "language_model.model." + name.removeprefix("language_model.").removeprefix("model.")
    if name.startswith("vision_tower."):
        return "vision_tower.vision_model." + name.removeprefix("vision_tower.").removeprefix("vision_model.")
    return name


def text_config(num_layers: int) -> dict[str, int]:
    return {
        "hidden_size": SHAPE_7B.hidden_size,
        "intermediate_size": SHAPE_7B.intermediate_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": SHAPE_7B.num_heads,
        "num_key_value_heads": SHAPE_7B.num_kv_heads,
        "vocab_size": VOCABULARY,
    }


def edit(path: Path, entries: dict[str, Any]) -> None:
    """Put *entries* into the JSON file *path*, into the objects that are there."""
    content = json.loads(path.read_text())
    for name, value in entries.items():
        content[name] = {**content.get(name, {}), **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(content))


def measure(original: Path, converted: Path, device: str) -> None:
    """Check the hidden states and print the figures; the peaks are this process's."""
    from s4convert.compensation.fitting import known_before_fitting
    from s4convert.model.decoder import require_stock_code
    from s4convert.output.manifest import read_conversion
    from s4convert.verify.behaviour import check_behaviour
    from s4convert.verify.claim import Claim
    from s4convert.verify.probe import make_probe

    before, after = Checkpoint.open(original), Checkpoint.open(converted)
    stated = read_conversion(after)
    assert stated is not None
    claim = Claim(before, after, stated.mask, known_before_fitting("scale", before, stated.mask))
    require_stock_code(before)
    start = time.monotonic()
    probe = make_probe(before, device=device)
    num_tokens = sum(len(sample.is_image) for sample in probe.samples)
    middle = time.monotonic()
    check_behaviour(claim, probe, device=device, advance=lambda _: None)
    end, layers = time.monotonic(), before.geometry.num_layers
    print(
        f"{probe.description} of {num_tokens:,} tokens: {middle - start:.1f} s; "
        f"{layers} layers on {device}: {end - middle:.1f} s, {(end - middle) / layers:.2f} s a layer; {peaks(device)}"
    )


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    parser.add_argument("--measure", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, arguments.device)
        return
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        original, converted = Path(scratch) / "llava-7b", Path(scratch) / "llava-7b-pruned"
        write_llava(original, arguments.layers)
        geometry = Checkpoint.open(original).geometry
        pruned = tuple(tuple(PRUNED) for _ in range(arguments.layers))
        mask = HeadMask(geometry.num_heads, pruned)
        convert(original, converted, mask, check_behaviour=False)
        command = [sys.executable, "-m", "benchmarks.verification", "--device", arguments.device]
        subprocess.run([*command, "--measure", str(original), str(converted)], check=True)


if __name__ == "__main__":
    main()
