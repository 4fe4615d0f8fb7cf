"""A conversion against a plain copy of the same 2 GB, whole processes, in pairs, in one run.

A conversion leaves its files on the disk (fsync), compares every byte with the input and hashes it; ``cp -r``
leaves them in the page cache. So three floors are timed: ``cp -r``; ``cp -r`` and ``sync``; and what a careful
person does by hand, ``cp -r``, ``sync``, ``diff -r`` and ``sha256sum`` on all processors.
``python -m benchmarks.copy_floor [--directory DIR]`` prints the median ratios; DIR needs 7 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.checkpoints import LARGE, write_with_mask


def timed(*commands: list[str]) -> float:
    """Wall seconds of *commands*, one after the other."""
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        source, mask = write_with_mask(Path(scratch) / "llava", LARGE)
        out = Path(scratch) / "out"
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        copy, sync = ["cp", "-r", str(source), str(out)], ["sync", "-f", str(out)]
        contestants = {
            "convert --no-verify": (
                [sys.executable, "-m", "s4convert", str(source), str(out), "--mask", str(mask), "--no-verify", "-q"],
            ),
            "cp -r": (copy,),
            "cp -r, sync": (copy, sync),
            "cp -r, sync, diff -r, sha256sum": (
                copy,
                sync,
                ["diff", "-r", str(source), str(out)],
                ["sh", "-c", f"find {out} -type f -print0 | xargs -0 -n 1 -P {os.cpu_count()} sha256sum"],
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        for counted in range(-1, arguments.pairs):  # the first round warms the page cache
            for name, commands in contestants.items():
                subprocess.run(["sync"], check=True)
                took = timed(*commands)
                shutil.rmtree(out)
                if counted >= 0:
                    seconds[name].append(took)
    convert = seconds.pop("convert --no-verify")
    print(
        f"{size / 1e9:.2f} GB, {arguments.pairs} pairs; convert --no-verify: median {statistics.median(convert):.2f} s"
    )
    for name, floor in seconds.items():
        ratios = [a / b for a, b in zip(convert, floor, strict=True)]
        print(
            f"against {name + ':':<33} median {statistics.median(floor):.2f} s, "
            f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
