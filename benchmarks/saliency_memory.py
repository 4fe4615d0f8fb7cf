"""Time and peak memory of saliency at the shape of LLaVA-7B, with synthetic weights and inputs.

``python -m benchmarks.saliency_memory [--layers N] [--metrics ...] [--directory DIR]`` prints, for every metric, the
time and the peaks: of the host (VmHWM) and of the GPU (``torch.cuda.max_memory_allocated``), where there is one.
DIR needs 0.4 GB a layer. Every metric runs in a process of its own, so that peaks do not mix.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.checkpoints import LARGE
from tests.support.synthetic import Spec, config, shapes

if TYPE_CHECKING:
    from s4convert.calibration.inputs import Inputs

MB = 1e6
SHAPE_7B = replace(
    LARGE, num_kv_heads=32, hidden_size=4096, intermediate_size=11008, vocab_size=32, num_layers=32, num_shards=32
)
SAMPLES, TOKENS, FIRST_IMAGE, IMAGE_TOKENS = 16, 640, 35, 576
LAYERS_ON_CPU = 2
METRICS = ("cross-attention", "energy", "reconstruction")
SPREAD = 0.02  # of the weights, as large models are initialised


def write_layers(directory: Path, spec: Spec) -> None:
    """A checkpoint of *spec*, one shard a layer; every layer has the same random numbers, so that it is quick."""
    import numpy as np

    from s4convert.checkpoint.safetensors_header import format_header

    generator = np.random.Generator(np.random.PCG64(spec.seed))
    names: dict[str, list[str]] = {}
    for name in shapes(spec):
        layer = name.split(".layers.")[1].split(".")[0] if name.startswith("language_model.model.layers.") else "rest"
        names.setdefault(layer, []).append(name)
    directory.mkdir(parents=True)
    data: dict[tuple[str, tuple[int, ...]], bytes] = {}
    weight_map = {}
    for layer, members in names.items():
        file_name = f"model-{layer}.safetensors"
        rows = [(name, "F16", shapes(spec)[name], 2 * int(np.prod(shapes(spec)[name]))) for name in members]
        with (directory / file_name).open("wb") as file:
            file.write(format_header(rows))
            for name, _, shape, _ in rows:
                kind = (name.split(".layers.")[-1].partition(".")[2], shape)
                if kind not in data:
                    centre = 1.0 if "layernorm" in name else 0.0
                    numbers = generator.standard_normal(shape, dtype=np.float32)
                    data[kind] = (centre + SPREAD * numbers).astype("<f2").tobytes()
                file.write(data[kind])
        weight_map.update(dict.fromkeys(members, file_name))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config(spec)))


def synthetic_inputs(width: int, num_samples: int) -> list[Inputs]:
    """Samples of 640 tokens, 576 of them of an image, as one of LLaVA-1.5 is, with random embeddings."""
    import torch

    from s4convert.calibration.inputs import Inputs

    generator = torch.Generator().manual_seed(0)
    is_image = torch.zeros(TOKENS, dtype=torch.bool)
    is_image[FIRST_IMAGE : FIRST_IMAGE + IMAGE_TOKENS] = True
    return [Inputs(SPREAD * torch.randn(1, TOKENS, width, generator=generator), is_image) for _ in range(num_samples)]


def peaks(device: str) -> str:
    """What this process took at the most, of the host's memory and of the GPU's."""
    import torch

    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    gpu = f", GPU peak {torch.cuda.max_memory_allocated() / MB:,.0f} MB" if device == "cuda" else ""
    return f"host peak {int(peak.split()[1]) * 1024 / MB:,.0f} MB{gpu}"


def measure(directory: Path, metric: str, device: str, num_samples: int) -> None:
    """Score the checkpoint and print the figures; the peaks are this process's."""
    from s4convert.checkpoint import Checkpoint
    from s4convert.saliency.metrics import Settings
    from s4convert.saliency.score import score_inputs

    checkpoint = Checkpoint.open(directory)
    inputs = synthetic_inputs(checkpoint.geometry.hidden_size, num_samples)
    start = time.monotonic()
    score_inputs(checkpoint, metric, inputs, Settings(device=device), progress=True)
    seconds, layers = time.monotonic() - start, checkpoint.geometry.num_layers
    print(
        f"{metric:<16} {layers} layers, {num_samples} samples of {TOKENS} tokens on {device}: {seconds:6.1f} s, "
        f"{seconds / layers:5.2f} s a layer, {32 * seconds / layers:6.0f} s for 32; "
        f"{peaks(device)}"
    )


def main() -> None:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, help=f"  [default: 32 on CUDA, {LAYERS_ON_CPU} on the CPU]")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--metrics", nargs="+", default=METRICS, choices=METRICS)
    parser.add_argument("--device", default=device)
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    parser.add_argument("--measure", type=Path, metavar="CHECKPOINT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.metrics[0], arguments.device, arguments.samples)
        return
    layers = arguments.layers or (SHAPE_7B.num_layers if arguments.device == "cuda" else LAYERS_ON_CPU)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        start = time.monotonic()
        write_layers(Path(scratch) / "llava", replace(SHAPE_7B, num_layers=layers, num_shards=layers))
        size = sum(file.stat().st_size for file in (Path(scratch) / "llava").iterdir())
        print(f"synthetic checkpoint: {layers} layers, {size / MB:,.0f} MB, in {time.monotonic() - start:.0f} s")
        for metric in arguments.metrics:
            options = ["--metrics", metric, "--device", arguments.device, "--samples", str(arguments.samples)]
            command = [sys.executable, "-m", "benchmarks.saliency_memory", "--measure", f"{scratch}/llava", *options]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
