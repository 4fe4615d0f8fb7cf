"""The metric fisher: its time and memory, and how well it predicts what heads cost.

``python -m benchmarks.fisher --shape 7b|135m [--device cuda] [--ways streamed resident] [--layers N]`` scores a
synthetic checkpoint and prints seconds, and the peaks of the host's memory and of the GPU's, of a process for each way.
``python -m benchmarks.fisher --checkpoint CKPT --text FILE [--device cuda] [--samples N]`` scores a real one; it prints
the rank correlation between J/2 and the measured KL of every layer that loses its first heads alone, for all counts.
The KL is measured on other samples than J, by the model in memory, with a least-squares refit; as the search does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.saliency_memory import SHAPE_7B, peaks, synthetic_inputs, write_layers
from tests.support.synthetic import Spec

SHAPES = {
    "7b": replace(SHAPE_7B, vocab_size=32000),
    "135m": Spec(
        num_layers=30,
        num_kv_heads=3,
        heads_per_group=3,
        head_dim=64,
        hidden_size=576,
        intermediate_size=1536,
        vocab_size=49152,
        num_shards=30,
    ),
}
SAMPLES = {"7b": 64, "135m": 6}  # of 640 tokens
WAYS = ("streamed", "resident")


def measure(directory: Path, way: str, device: str, num_samples: int) -> None:
    """Score the checkpoint and print the figures; the peaks are this process's."""
    import torch

    from s4convert.checkpoint import Checkpoint
    from s4convert.saliency.metrics import Settings
    from s4convert.saliency.score import score_inputs

    checkpoint = Checkpoint.open(directory)
    inputs = synthetic_inputs(checkpoint.geometry.hidden_size, num_samples)
    tokens = sum(len(sample.is_image) for sample in inputs)
    start = time.monotonic()
    settings = Settings(device=device, resident=way == "resident")
    score_inputs(checkpoint, "fisher", inputs, settings, progress=True)
    seconds, layers = time.monotonic() - start, checkpoint.geometry.num_layers
    where = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{way:<9} {layers} layers, {tokens:,} tokens on {where}: {seconds:.1f} s; {peaks(device)}")


def correlate(path: Path, text: Path, device: str, num_samples: int) -> None:
    """Print the rank correlation of J/2 with the KL of single layers that lose their first heads."""
    import numpy as np

    from s4convert.calibration.inputs import make_inputs
    from s4convert.calibration.samples import read_samples
    from s4convert.checkpoint import Checkpoint
    from s4convert.model.resident import ResidentModel
    from s4convert.saliency.metrics import Settings
    from s4convert.saliency.score import score_inputs
    from s4convert.study.search import Searcher

    checkpoint = Checkpoint.open(path)
    inputs = make_inputs(checkpoint, read_samples(text, num_samples=num_samples).samples, device=device)
    scored, judging = inputs[: -(-3 * len(inputs) // 4)], inputs[-(-3 * len(inputs) // 4) :]
    start = time.monotonic()
    scores = score_inputs(checkpoint, "fisher", list(scored), Settings(device=device), progress=True)
    assert scores.ladders is not None
    tokens = sum(len(sample.is_image) for sample in scored)
    print(f"scored {tokens:,} tokens in {time.monotonic() - start:.1f} s; {peaks(device)}")
    orders = [ladder.order for ladder in scores.ladders]
    dtype = "float32" if device == "cpu" else None
    model = ResidentModel(checkpoint, device=device, dtype=dtype)
    searcher = Searcher(model, orders, scored, judging, [~sample.is_image for sample in judging])
    predicted, measured = [], []
    for layer, ladder in enumerate(scores.ladders):
        for count in range(1, len(ladder.order)):
            searcher.refit(layer, count)
            predicted.append(ladder.cost[count - 1] / 2)
            measured.append(searcher.divergence())
        searcher.refit(layer, 0)
    ranks = [np.argsort(np.argsort(figures)) for figures in (predicted, measured)]
    correlation = float(np.corrcoef(*ranks)[0, 1])
    ratio = np.array(measured) / np.array(predicted)
    low, middle, high = np.quantile(ratio, (0.1, 0.5, 0.9))
    print(
        f"J/2 and the KL of {len(predicted)} single-layer ladders on {searcher.tokens:,} other tokens: rank "
        f"correlation {correlation:.3f}; KL is {middle:.2f} of J/2 in the median, {low:.2f} to {high:.2f} in 80 %"
    )


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--layers", type=int, help="of the synthetic checkpoint  [default: all]")
    parser.add_argument("--checkpoint", type=Path, help="a language model to find the rank correlation on")
    parser.add_argument("--text", type=Path, help="plain text for it")
    parser.add_argument("--samples", type=int, help="of 640 tokens, or of the text")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    parser.add_argument("--measure", type=Path, metavar="CHECKPOINT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure, arguments.ways[0], arguments.device, arguments.samples)
    if arguments.checkpoint:
        correlate(arguments.checkpoint, arguments.text, arguments.device, arguments.samples or 16)
    if arguments.shape:
        layers = arguments.layers or SHAPES[arguments.shape].num_layers
        samples = arguments.samples or SAMPLES[arguments.shape]
        with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
            write_layers(Path(scratch, "llava"), replace(SHAPES[arguments.shape], num_layers=layers, num_shards=layers))
            for way in arguments.ways:
                options = ["--ways", way, "--device", arguments.device, "--samples", str(samples)]
                command = [sys.executable, "-m", "benchmarks.fisher", "--measure", f"{scratch}/llava", *options]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
