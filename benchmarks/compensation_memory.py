"""Time and peak memory of a least-squares compensation at the shape of LLaVA-7B, with synthetic weights and inputs.

``python -m benchmarks.compensation_memory [--layers N] [--samples N] [--directory DIR]`` prints the time of the
statistics (one pass through the model) and of the solve (10 of 32 heads of every layer pruned, damping chosen on
held-out samples), and the peaks: of the GPU, where there is one, and of the host, with the files that are mapped into
memory (VmHWM: most of CUDA's libraries are, and the checkpoint) and without them, which is what must be free beyond
the page cache. DIR needs 0.7 GB a layer. On a CPU, 4 layers and 8 samples are measured, and what 32 layers and 64
samples would take is worked out from them.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.saliency_memory import MB, SHAPE_7B, TOKENS, peaks, synthetic_inputs, write_layers

LAYERS, SAMPLES = 32, 64
LAYERS_ON_CPU, SAMPLES_ON_CPU = 4, 8
PRUNED = tuple(range(0, 30, 3))


def main() -> None:
    import torch

    from s4convert.calibration.statistics import Statistics
    from s4convert.checkpoint import Checkpoint
    from s4convert.compensation import fit
    from s4convert.mask import HeadMask

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
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch, own_memory() as own:
        write_layers(Path(scratch, "llava"), replace(SHAPE_7B, num_layers=layers, num_shards=layers))
        checkpoint = Checkpoint.open(Path(scratch, "llava"))
        statistics = Statistics(Path(scratch, "statistics"), device=device)
        inputs = synthetic_inputs(checkpoint.geometry.hidden_size, samples)
        start = time.monotonic()
        statistics.gather_inputs(checkpoint, inputs, range(layers), holdout=0.2, device=device, progress=True)
        gathered = time.monotonic() - start
        del inputs
        report(f"statistics of {samples} samples of {TOKENS} tokens", gathered, layers, samples, device, own)
        mask = HeadMask(32, (PRUNED,) * layers)
        maps = Path(scratch, "maps")
        maps.mkdir()
        start = time.monotonic()
        fit("least-squares", checkpoint, mask, maps, moments=statistics, progress=True)
        solved = time.monotonic() - start
        report("choice of the damping and solve", solved, layers, SAMPLES, device, own)


@contextmanager
def own_memory() -> Iterator[list[int]]:
    """A list whose last entry is the most bytes, of no file, that this process has had in memory so far.

    Linux keeps a high-water mark only of all memory together, so this looks every 10 ms.
    """
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            lines = Path("/proc/self/status").read_text().splitlines()
            kilobytes = [int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))]
            peak.append(max(peak.pop(), sum(kilobytes) * 1024))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def report(what: str, seconds: float, layers: int, samples: int, device: str, own: list[int]) -> None:
    """Print the figures; of the statistics, time grows with the samples, which are taken as *samples* of 64."""
    whole = seconds / layers * LAYERS * SAMPLES / samples
    print(
        f"{what}, {layers} layers on {device}: {seconds:.1f} s, {seconds / layers:.2f} s a layer; "
        f"{LAYERS} layers and {SAMPLES} samples: {whole:.0f} s; {peaks(device)}; "
        f"host peak without mapped files {own[-1] / MB:,.0f} MB"
    )


if __name__ == "__main__":
    main()
