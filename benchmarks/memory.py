"""Peak memory (VmHWM) of a conversion, of a small and of a large checkpoint, and of a verification.

``python -m benchmarks.memory [--directory DIR]`` prints the peaks and what they are compared with; DIR needs
5 GB. VmHWM and not ``ru_maxrss``, which a child inherits from its parent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoints import LARGE, SMALL, write_with_mask
from s4convert.checkpoint import Checkpoint

MB = 1e6
_RUN_AND_TELL_PEAK = """
import pathlib, sys
from s4convert import cli
try:
    cli.main()
finally:
    peak = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    print(int(peak.split()[1]) * 1024, file=sys.stderr)
"""


def peak_bytes(*arguments: str) -> int:
    """The peak memory of one run of the command line."""
    run = subprocess.run(
        [sys.executable, "-c", _RUN_AND_TELL_PEAK, *arguments], check=True, capture_output=True, text=True
    )
    return int(run.stderr.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--directory", type=Path, help="where to work  [default: the temporary directory]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as scratch:
        peaks = {}
        for name, spec in (("small", SMALL), ("large", LARGE)):
            source, mask = write_with_mask(Path(scratch) / name, spec)
            size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
            out = f"{source}-out"
            peaks[name] = peak_bytes(str(source), out, "--mask", str(mask), "--no-verify")
            print(f"convert --no-verify, {size / MB:>6,.0f} MB checkpoint: peak {peaks[name] / MB:,.0f} MB")
        print(f"growth: {(peaks['large'] - peaks['small']) / MB:,.0f} MB (bar: under 64 MB)")
        checkpoint = Checkpoint.open(source)
        layer = sum(4 * tensor.entry.num_bytes // 2 for tensor in checkpoint.layers[0].values())
        embeddings = 2 * checkpoint.embedding.entry.num_bytes
        peak = peak_bytes("verify", str(source), out)
        bar = layer + embeddings + 600 * MB
        print(
            f"verify: peak {peak / MB:,.0f} MB (bar: under {bar / MB:,.0f} MB, which is one layer in float32 "
            f"{layer / MB:,.0f} MB + embeddings in float32 {embeddings / MB:,.0f} MB + 600 MB)"
        )


if __name__ == "__main__":
    main()
