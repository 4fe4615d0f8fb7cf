"""A conversion against what else could be done, whole processes in turn, round by round.

``python -m benchmarks.conversion [--quick | --gigabytes N] [--directory DIR]`` prints a table for each layout of a
synthetic checkpoint of the shape of LLaVA-1.5-7B (13.6 GB; 2.3 GB with ``--quick``). All times are also given as ratios
to ``cp -r`` and ``sync`` of the same round, and to the floor: the larger of that and of the sha256 of all bytes on all
processors. DIR needs three times as much room. ``--mergekit`` is an environment with mergekit, ``--growth`` shows in
place of the rivals how the time grows, and ``--xfs`` works on an XFS in a file (as root).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.checkpoints import write_large, write_mask
from benchmarks.processes import Run, run
from benchmarks.saliency_memory import synthetic_inputs
from tests.support.synthetic import HUGGING_FACE, ORIGINAL, SEVEN_B, Spec, config

GB = 1e9
LAYER_BYTES = 405e6
OTHER_BYTES = 660e6
COPY, HASH, COMPARE, CONVERT = "cp -r, sync", "sha256, all processors", "cp -r, cmp", "s4convert"
FITTED = "least-squares"


@dataclass(frozen=True)
class Contestant:
    """What is timed: *commands* one after the other. It runs in the first *rounds* rounds, all where that is None."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    rounds: int | None = None


def python(*arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-m", *map(str, arguments))


def converting(source: Path, out: Path, mask: Path, *options: str) -> tuple[str, ...]:
    return python("s4convert", source, out, "--mask", mask, "-q", "--allow-name", *options)


def floors(source: Path, out: Path, mask: Path, *options: str) -> list[Contestant]:
    """What the time of a conversion is compared with, and the conversion with *options*."""
    copy, sync = ("cp", "-r", str(source), str(out)), ("sync", "-f", str(out))
    return [
        Contestant(COPY, (copy, sync)),
        Contestant(HASH, (python("benchmarks.rivals", "hash", source, out, mask),)),
        Contestant(COMPARE, (copy, *(("cmp", str(file), str(out / file.name)) for file in source.iterdir()))),
        Contestant(CONVERT, (converting(source, out, mask, "--no-verify", *options),)),
    ]


def contestants(source: Path, out: Path, mask: Path, size: float, mergekit: Path | None) -> Iterator[Contestant]:
    """All that are compared on the checkpoint *source* of *size* bytes."""
    copy, sync = ("cp", "-r", str(source), str(out)), ("sync", "-f", str(out))
    yield from floors(source, out, mask)
    for jobs in (1, 2, 4):
        yield Contestant(
            f"{CONVERT} --jobs {jobs}", (converting(source, out, mask, "--no-verify", "--jobs", str(jobs)),)
        )
    yield Contestant(f"{CONVERT}, hidden states", (converting(source, out, mask),), rounds=1)
    yield Contestant("cp -r", (copy,))
    yield Contestant("safetensors", (python("benchmarks.rivals", "safetensors", source, out, mask), sync))
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if json.loads((source / "config.json").read_text())["model_type"] != "llava" and available > 1.3 * size:
        yield Contestant("transformers", (python("benchmarks.rivals", "transformers", source, out, mask), sync))
    if mergekit is not None:
        yield Contestant("mergekit, sync", (merging(source, out, mergekit), sync))


def merging(source: Path, out: Path, mergekit: Path) -> tuple[str, ...]:
    """mergekit's passthrough with a factor on ``o_proj``; it is told that the checkpoint is a plain Llama."""
    plain = source.with_name("plain")
    if not plain.exists():
        shutil.copytree(source, plain, copy_function=os.link)
        (plain / "config.json").unlink()
        text = json.loads((source / "config.json").read_text())
        text |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "torch_dtype": "float16"}
        (plain / "config.json").write_text(json.dumps(text))
    recipe = source.with_name("recipe.yml")
    layers = json.loads((plain / "config.json").read_text())["num_hidden_layers"]
    scale = [{"filter": "o_proj", "value": 1.45}, {"value": 1.0}]
    part = {"model": str(plain), "layer_range": [0, layers], "parameters": {"scale": scale}}
    recipe.write_text(json.dumps({"slices": [{"sources": [part]}], "merge_method": "passthrough", "dtype": "float16"}))
    return (str(mergekit / "bin" / "mergekit-yaml"), str(recipe), str(out), "--no-copy-tokenizer", "--quiet")


def race(entered: Sequence[Contestant], out: Path, rounds: int) -> dict[str, list[Run]]:
    """The runs of each, *rounds* of them; a round before them warms the page cache and does not count."""
    runs: dict[str, list[Run]] = {one.name: [] for one in entered}
    for number in range(-1, rounds):
        for one in entered:
            if one.rounds is not None and not 0 <= number < one.rounds:
                continue
            shutil.rmtree(out, ignore_errors=True)
            subprocess.run(["sync"], check=True)
            result = run(*one.commands)
            if number >= 0:
                runs[one.name].append(result)
    shutil.rmtree(out, ignore_errors=True)
    return runs


def ratios(runs: Mapping[str, Sequence[Run]], name: str, floor: Callable[[int], float]) -> str:
    values = [one.seconds / floor(number) for number, one in enumerate(runs[name])]
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def print_table(runs: Mapping[str, Sequence[Run]]) -> None:
    """Print a row for each; the processor's time is also given as a ratio to that of copy, sha256 and cmp together."""

    def copy(number: int) -> float:
        return runs[COPY][number].seconds

    def floor(number: int) -> float:
        return max(copy(number), runs[HASH][number].seconds)

    print("| | seconds | to cp -r, sync | to the floor | processor s | to copy, hash, cmp | peak MB | written GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    together = [a.processor_seconds + b.processor_seconds for a, b in zip(runs[HASH], runs[COMPARE], strict=True)]
    for name, of_one in runs.items():
        if not of_one:
            continue
        seconds = [one.seconds for one in of_one]
        print(
            f"| {name} | {statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f}) "
            f"| {ratios(runs, name, copy)} | {ratios(runs, name, floor)} "
            f"| {statistics.median(one.processor_seconds for one in of_one):.2f} "
            f"| {statistics.median(a.processor_seconds / b for a, b in zip(of_one, together, strict=False)):.2f} "
            f"| {max(one.peak_bytes for one in of_one) / 1e6:,.0f} "
            f"| {statistics.median(one.written_bytes for one in of_one) / GB:.2f} |"
        )


def shaped(gigabytes: float, **changes: object) -> Spec:
    """The shape of LLaVA-1.5-7B with as many layers as make so many bytes; one and few tokens for less than 1 GB."""
    if gigabytes < 1:
        return replace(SEVEN_B, num_layers=1, vocab_size=1000, **changes)
    return replace(SEVEN_B, num_layers=round((gigabytes * GB - OTHER_BYTES) / LAYER_BYTES), **changes)


def write(scratch: Path, spec: Spec, share: float) -> tuple[Path, Path, Path, float]:
    """(IN, OUT, the mask, the bytes of IN) of a new checkpoint."""
    source = write_large(scratch / "in", spec)
    assert json.loads((source / "config.json").read_text()) == config(spec)
    size = sum(file.stat().st_size for file in source.iterdir())
    return source, scratch / "llava-out", write_mask(scratch / "mask.json", spec, share), size


def compare_rivals(directory: Path, gigabytes: float, rounds: int, mergekit: Path | None) -> None:
    for layout in (HUGGING_FACE, ORIGINAL):
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            source, out, mask, size = write(Path(scratch), shaped(gigabytes, layout=layout), 0.3)
            entered = list(contestants(source, out, mask, size, mergekit if layout == ORIGINAL else None))
            print(f"\n{layout} layout, {size / GB:.2f} GB in 3 shards, {rounds} rounds, {os.cpu_count()} processors\n")
            print_table(race(entered, out, rounds))


def gather_statistics(source: Path, directory: Path) -> Path:
    """Statistics of a few samples of noise, which a fit takes as long for as for any; they go into *directory*."""
    from s4convert.calibration.statistics import PassingMoments, Statistics
    from s4convert.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(source)
    inputs, layers = synthetic_inputs(checkpoint.geometry.hidden_size, 5), range(checkpoint.geometry.num_layers)
    PassingMoments(checkpoint, inputs, layers, 0.2, "cpu", kept=Statistics(directory), whole=True).finish()
    return directory


def show_growth(directory: Path, rounds: int, largest: float) -> None:
    """Size, shards, share of heads and compensation, each changed alone."""
    middle = min(8.0, largest)
    cases = [(f"{size:g} GB", shaped(size), 0.3, False) for size in (0.5, 2.0, 8.0, 16.0) if size <= largest]
    cases += [(f"{middle:g} GB, shards: {shards}", shaped(middle, num_shards=shards), 0.3, False) for shards in (1, 30)]
    cases += [(f"{middle:g} GB, heads: {share:.0%}", shaped(middle), share, False) for share in (0.1, 0.6)]
    cases.append((f"{middle:g} GB, {FITTED}", shaped(middle), 0.3, True))
    print("| | GB | s4convert, s | to cp -r, sync | to the floor | processor s for a GB | peak MB |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, spec, share, is_fitted in cases:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            source, out, mask, size = write(Path(scratch), spec, share)
            options: tuple[str, ...] = ()
            if is_fitted:
                gathered = gather_statistics(source, Path(scratch) / "statistics")
                options = ("--compensate", FITTED, "--statistics", str(gathered))
            runs = race(floors(source, out, mask, *options), out, rounds)
        of_ours, copies, hashes = runs[CONVERT], runs[COPY], runs[HASH]
        floor = [max(one.seconds, other.seconds) for one, other in zip(copies, hashes, strict=True)]
        print(
            f"| {name} | {size / GB:.2f} | {statistics.median(one.seconds for one in of_ours):.2f} "
            f"| {ratios(runs, CONVERT, [one.seconds for one in copies].__getitem__)} "
            f"| {ratios(runs, CONVERT, floor.__getitem__)} "
            f"| {statistics.median(one.processor_seconds for one in of_ours) / size * GB:.2f} "
            f"| {max(one.peak_bytes for one in of_ours) / 1e6:,.0f} |",
            flush=True,
        )


@contextmanager
def xfs(directory: Path, size: float) -> Iterator[Path]:
    """An XFS that shares blocks, in a file of *directory*."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        image, mounted = Path(scratch) / "image", Path(scratch) / "xfs"
        with image.open("wb") as file:
            file.truncate(int(size))
        mounted.mkdir()
        subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True)
        try:
            yield mounted
        finally:
            subprocess.run(["umount", str(mounted)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--gigabytes", type=float, help="[default: 13.6; up to 16 with --growth]")
    parser.add_argument("--quick", dest="gigabytes", action="store_const", const=2.3, help="2.3 GB")
    parser.add_argument("--mergekit", type=Path, help="a virtual environment with mergekit")
    parser.add_argument("--growth", action="store_true", help="how the time grows, in place of rivals")
    parser.add_argument("--xfs", action="store_true", help="on an XFS in a file; needs root and mkfs.xfs")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.gettempdir())
    gigabytes: float = arguments.gigabytes or (16 if arguments.growth else 13.6)
    if arguments.growth:
        show_growth(directory, arguments.rounds, gigabytes)
    elif arguments.xfs:
        with xfs(directory, 3 * gigabytes * GB) as mounted, tempfile.TemporaryDirectory(dir=mounted) as scratch:
            source, out, mask, size = write(Path(scratch), shaped(gigabytes), 0.3)
            print(f"\nXFS in a file, {size / GB:.2f} GB in 3 shards, {arguments.rounds} rounds\n")
            print_table(race(floors(source, out, mask), out, arguments.rounds))
    else:
        compare_rivals(directory, gigabytes, arguments.rounds, arguments.mergekit)


if __name__ == "__main__":
    main()
