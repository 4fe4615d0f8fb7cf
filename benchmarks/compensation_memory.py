"""Time and peak memory of a least-squares compensation at the shape of LLaVA-7B, with synthetic weights and inputs.

``python -m benchmarks.compensation_memory [--layers N] [--samples N] [--directory DIR]`` prints the time of the
statistics (one pass through the model) and of the solve (10 of 32 heads of every layer pruned, damping chosen on
held-out samples), and the peaks: of the host (VmHWM) and of the GPU, where there is one. DIR needs 0.7 GB a layer.
On a CPU, 4
layers and 8 samples are measured, and what 32 layers and 64 samples would take is worked out from them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.saliency_memory import SHAPE_7B, TOKENS, peaks, synthetic_inputs, write_layers

LAYERS, SAMPLES = 32, 64
LAYERS_ON_CPU, SAMPLES_ON_CPU = 4, 8
PRUNED = tuple(range(0, 30, 3))


def main() -> None:
    import torch

    from converter.calibration.statistics import Statistics
    from converter.checkpoint import Checkpoint
    from converter.compensation import FittedCompensation
    from converter.mask import HeadMask

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=device)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    arguments = parser.parse_args()
    device = arguments.device
    layers = arguments.layers or (LAYERS if device == "cuda" else LAYERS_ON_CPU)
    samples = arguments.samples or (SAMPLES if device == "cuda" else SAMPLES_ON_CPU)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        write_layers(Path(scratch, "llava"), replace(SHAPE_7B, num_layers=layers, num_shards=layers))
        checkpoint = Checkpoint.open(Path(scratch, "llava"))
        statistics = Statistics(Path(scratch, "statistics"))
        inputs = synthetic_inputs(checkpoint.geometry.hidden_size, samples)
        start = time.monotonic()
        statistics.gather_inputs(
            checkpoint, inputs, range(layers), holdout=0.2, device=device, provenance={}, progress=True
        )
        gathered = time.monotonic() - start
        report(f"statistics of {samples} samples of {TOKENS} tokens", gathered, layers, samples, device)
        mask = HeadMask(32, (PRUNED,) * layers)
        fitted = FittedCompensation("least-squares", checkpoint, mask, statistics)
        start = time.monotonic()
        for layer in range(layers):
            fitted.mix(layer)
        solved = time.monotonic() - start
        report("choice of the damping and solve", solved, layers, SAMPLES, device)


def report(what: str, seconds: float, layers: int, samples: int, device: str) -> None:
    """Print the figures; of the statistics, time grows with the samples, which are taken as *samples* of 64."""
    whole = seconds / layers * LAYERS * SAMPLES / samples
    print(
        f"{what}, {layers} layers on {device}: {seconds:.1f} s, {seconds / layers:.2f} s a layer; "
        f"{LAYERS} layers and {SAMPLES} samples: {whole:.0f} s; {peaks(device)}"
    )


if __name__ == "__main__":
    main()
