"""Time and peak memory of a least-squares compensation at the shape of LLaVA-7B, with synthetic weights and inputs.

``python -m benchmarks.compensation_memory [--layers N] [--samples N] [--parts] [--directory DIR]`` prints the time of
statistics and solve (one pass through the model; 10 of 32 heads of every layer pruned, damping chosen on held-out
samples), and the peaks: of the GPU, where there is one, and of the host, with the files that are mapped into memory
(VmHWM: most of CUDA's libraries are, and the checkpoint) and without them, which is what must be free beyond the page
cache. DIR needs 0.7 GB a layer. On a CPU, 4 layers and 8 samples are measured, and what 32 layers and 64 samples would
take is worked out from them.

``--parts`` prints beside that what each part takes alone, one after the other: reading the layers, the forward pass of
the samples, the sums of their moments, the pass as a whole, the fits; and, once the conversion is written, which takes
as much room again, the check of the fits.
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
from typing import TYPE_CHECKING

from benchmarks.saliency_memory import MB, SHAPE_7B, TOKENS, peaks, synthetic_inputs, write_layers

if TYPE_CHECKING:
    from s4convert.calibration.statistics import Statistics
    from s4convert.checkpoint import Checkpoint
    from s4convert.compensation import Fits
    from s4convert.mask import HeadMask

LAYERS, SAMPLES, HOLDOUT = 32, 64, 0.2
LAYERS_ON_CPU, SAMPLES_ON_CPU = 4, 8
PRUNED = tuple(range(0, 30, 3))


def main() -> None:
    import torch

    from s4convert.calibration.statistics import PassingMoments, Statistics
    from s4convert.checkpoint import Checkpoint
    from s4convert.compensation import fit
    from s4convert.mask import HeadMask

    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=device)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--parts", action="store_true", help="what each part takes, too")
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    arguments = parser.parse_args()
    device = arguments.device
    layers = arguments.layers or (LAYERS if device == "cuda" else LAYERS_ON_CPU)
    samples = arguments.samples or (SAMPLES if device == "cuda" else SAMPLES_ON_CPU)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name, own_memory() as own:
        scratch = Path(name)
        write_layers(scratch / "llava", replace(SHAPE_7B, num_layers=layers, num_shards=layers))
        checkpoint = Checkpoint.open(scratch / "llava")
        mask, maps = HeadMask(32, (PRUNED,) * layers), scratch / "maps"
        maps.mkdir()
        start = time.monotonic()
        inputs = synthetic_inputs(checkpoint.geometry.hidden_size, samples)
        kept = Statistics(scratch / "statistics", device=device)
        passing = PassingMoments(
            checkpoint, inputs, range(layers), HOLDOUT, device, kept=kept, whole=False, progress=True
        )
        del inputs
        fits = fit("least-squares", checkpoint, mask, maps, moments=passing, progress=True)
        passing.finish()
        seconds = time.monotonic() - start
        whole = seconds / layers * LAYERS * SAMPLES / samples
        print(
            f"statistics and solve of {samples} samples of {TOKENS} tokens, {layers} layers on {device}: "
            f"{seconds:.1f} s, {seconds / layers:.2f} s a layer; {LAYERS} layers and {SAMPLES} samples: {whole:.0f} s; "
            f"{peaks(device)}; host peak without mapped files {own[-1] / MB:,.0f} MB"
        )
        if arguments.parts:
            print_parts(checkpoint, mask, fits, kept, scratch, samples, device)


def print_parts(
    checkpoint: Checkpoint, mask: HeadMask, fits: Fits, kept: Statistics, scratch: Path, samples: int, device: str
) -> None:
    """What each part takes alone, in seconds for all layers."""
    import torch

    from s4convert.calibration.moments import SplitMoments
    from s4convert.calibration.statistics import PassingMoments, Statistics, held_out_of
    from s4convert.calibration.stream import LayerBatch
    from s4convert.compensation import fit
    from s4convert.model.attention import AttentionInput
    from s4convert.model.decoder import LayerDecoder, full_float32
    from s4convert.rewrite.assembly import assemble
    from s4convert.rewrite.plan import make_plan
    from s4convert.rewrite.writer import disk_flusher, stage
    from s4convert.verify.claim import Claim, Terms
    from s4convert.verify.definition import check_definition
    from s4convert.verify.structure import ByteChecks

    @contextmanager
    def timed(part: str, layers: int) -> Iterator[None]:
        start = time.monotonic()
        yield
        if device == "cuda":
            torch.cuda.synchronize()
        seconds = (time.monotonic() - start) * mask.num_layers / layers
        print(f"{part:<8}{seconds:>8.1f} s, {seconds / mask.num_layers:.3f} s a layer", flush=True)

    geometry, number = checkpoint.geometry, mask.num_layers
    inputs = [
        replace(sample, hidden=sample.hidden.to(device), is_image=sample.is_image.to(device))
        for sample in synthetic_inputs(geometry.hidden_size, samples)
    ]
    decoder = LayerDecoder(checkpoint, device)
    with timed("read", number):
        for _ in decoder.load_each((checkpoint, layer) for layer in range(number)):
            pass
    with timed("forward", 1), full_float32():
        for sample in inputs:
            decoder.forward(sample.hidden)
    looking = SplitMoments(held_out_of(samples, HOLDOUT))
    nothing = AttentionInput(inputs[0].hidden, inputs[0].hidden, None, 1.0)
    with timed("Gram", 1), torch.inference_mode():
        for place, sample in enumerate(inputs):
            looking.observe(
                LayerBatch((place,), (len(sample.is_image),), sample.is_image, sample.hidden[0], (nothing,))
            )
        looking.take()
    del looking, decoder
    with timed("pass", number):
        data = Statistics(scratch / "whole", device=device)
        PassingMoments(checkpoint, inputs, [number - 1], HOLDOUT, device, kept=data, whole=True).finish()
    moments, again = data(number - 1), scratch / "again"
    again.mkdir()
    with timed("fits", number):
        fit("least-squares", checkpoint, mask, again, moments=lambda layer: moments)
    plan = make_plan(checkpoint, mask, fits, assemble(checkpoint, None, own_files=frozenset()))
    (scratch / "out").mkdir()
    checks = ByteChecks(Terms(checkpoint, mask, fits), scratch / "out")
    with timed("write", number), disk_flusher() as flusher:  # and compare
        stage(checkpoint, plan, scratch / "out", flusher, checks, jobs=8, advance=lambda _: None)
        flusher.wait()
    claim = Claim(checkpoint, type(checkpoint).open(scratch / "out"), mask, fits)
    with timed("check", number):
        for layer in range(number):
            check_definition(claim, layer, kept(layer).train)


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


if __name__ == "__main__":
    main()
