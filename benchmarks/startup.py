"""What a command takes before, and beside, its work: whole processes, in turn, and the bars that they are held to.

``python -m benchmarks.startup [--rounds N] [--mini]``. The 7B checkpoint has holes for weights, but for the rows of
``o_proj`` that tell whether a head is silent; each file is out of the page cache where a cold start is timed. Seconds
are of the wall, with those of the processor (user and system) beside them: on a busy machine, the latter tell more.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from tests.support.synthetic import SEVEN_B, encode, write_checkpoint

COMMAND = [sys.executable, "-m", "s4convert"]
# Both sides of the bar for a small conversion; what the first lacks are the classes that run a model.
IMPORTS = "import torch, transformers"
CLASSES = f"{IMPORTS}\nfrom transformers import AutoModel, AutoProcessor, LlamaModel, LlavaForConditionalGeneration"
# The forward passes alone: what a conversion with verification does once everything is imported.
VERIFIED = f"""
import sys, time
{CLASSES}
from s4convert import verify_conversion
verify_conversion(sys.argv[1], sys.argv[2])
start = time.process_time()
verify_conversion(sys.argv[1], sys.argv[2])
print(time.process_time() - start)
"""


def timed(*command: str) -> tuple[float, float, str]:
    """(seconds of the wall, seconds of the processor, stdout) of *command*."""
    before, start = os.times(), perf_counter()
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, after = perf_counter() - start, os.times()
    busy = sum(getattr(after, of) - getattr(before, of) for of in ("children_user", "children_system"))
    return wall, busy, run.stdout


def write_seven_b(path: Path) -> Path:
    """A checkpoint with the shape of LLaVA-1.5-7B in the new directory *path*, none of its heads silent."""
    checkpoint = Checkpoint.open(write_checkpoint(path, SEVEN_B, sparse=True))
    generator = np.random.Generator(np.random.PCG64(0))
    for layer in range(checkpoint.geometry.num_layers):
        output = checkpoint.output_projection(layer)
        with (path / output.shard).open("r+b") as file:
            file.seek(output.entry.begin)
            file.write(encode(generator.normal(0, 0.02, (16, output.shape[1])).astype(np.float32), output.dtype))
    return path


def drop_from_page_cache(path: Path) -> None:
    """Put what stands in the directory *path* out of the page cache."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def report(name: str, rounds: int, command: list[str], bar: str, before: Callable[[], object] = lambda: None) -> None:
    """Run *command* so many *rounds*, each after *before*, and print what it took."""
    took = []
    for _ in range(rounds):
        before()
        took.append(timed(*command)[:2])
    wall, busy = (statistics.median(times) for times in zip(*took, strict=True))
    most = max(times[0] for times in took)
    print(f"{name:<44} {wall:5.2f} s (at most {most:.2f}), {busy:5.2f} s of the processor; {bar}", flush=True)


def compare_small_conversion(rounds: int, scratch: Path) -> None:
    """The shipped mini LLaVA, converted with verification, against the imports that it needs."""
    mask, out = scratch / "mini.json", scratch / "mini-out"
    mask.write_text(json.dumps({"pruned_heads": {"0": [0], "1": [1]}}))
    convert = [*COMMAND, str(MINI_LLAVA), str(out), "--mask", str(mask), "-q", "--force"]
    contestants = {
        "convert": convert,
        "convert --no-verify": [*convert, "--no-verify"],
        "imports": [sys.executable, "-c", IMPORTS],
        "classes": [sys.executable, "-c", CLASSES],
    }
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    passes = []
    for counted in range(-1, rounds):  # the first round warms the page cache
        for name, command in contestants.items():
            one = timed(*command)[:2]
            if counted >= 0:
                took[name].append(one)
        passes.append(float(timed(sys.executable, "-c", VERIFIED, str(MINI_LLAVA), str(out))[2]))
    for name, times in took.items():
        wall, busy = (statistics.median(each) for each in zip(*times, strict=True))
        print(f"mini LLaVA: {name:<32} {wall:5.2f} s, {busy:5.2f} s of the processor")
    forward = statistics.median(passes)
    ratios = [(a[1] - forward) / b[1] for a, b in zip(took["convert"], took["imports"], strict=True)]
    print(
        f"mini LLaVA: a second verification             {forward:5.2f} s of the processor: probe and forward passes\n"
        f"mini LLaVA: convert without those, against imports: {statistics.median(ratios):.2f} "
        f"(from {min(ratios):.2f} to {max(ratios):.2f}; bar: 1.5), of the processor's time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mini", action="store_true", help="the mini LLaVA alone")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        scratch = Path(name)
        if not arguments.mini:
            seven_b, mask = write_seven_b(scratch / "llava-7b"), scratch / "7b.json"
            mask.write_text(json.dumps({"pruned_heads": {str(layer): [0, 3, 5] for layer in range(32)}}))
            many = replace(
                SEVEN_B,
                num_layers=5555,
                num_kv_heads=2,
                head_dim=4,
                hidden_size=8,
                intermediate_size=12,
                vocab_size=32,
            )
            write_checkpoint(scratch / "many", many, sparse=True)
            opened = f"from s4convert.checkpoint import Checkpoint\nCheckpoint.open({str(scratch / 'many')!r})"
            dry_run = [*COMMAND, str(seven_b), str(scratch / "out"), "--mask", str(mask), "--dry-run"]
            rounds, cold = arguments.rounds, lambda: drop_from_page_cache(seven_b)
            report("--help", rounds, [*COMMAND, "--help"], "bar: 0.25 s")
            report("inspect of a 7B checkpoint, cold", rounds, [*COMMAND, "inspect", str(seven_b)], "bar: 0.5 s", cold)
            report("--dry-run of a 7B checkpoint, cold", rounds, dry_run, "bar: 0.5 s", cold)
            report("a checkpoint of 50,000 tensors opened", rounds, [sys.executable, "-c", opened], "bar: 2 s")
        compare_small_conversion(arguments.rounds, scratch)


if __name__ == "__main__":
    main()
