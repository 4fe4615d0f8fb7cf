"""The fingerprint of a 7B-shaped checkpoint: seconds, and what it reads of 13 GB.

The shards are sparse files, so nothing is on the disk but their headers: this is the warm case, where the pages that
are read are in memory. ``python -m benchmarks.fingerprint`` prints a line.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from s4convert.checkpoint import Checkpoint
from tests.support.synthetic import SEVEN_B, write_checkpoint


def bytes_read() -> int:
    """What this process has read from files so far, from the page cache or the disk."""
    counters = Path("/proc/self/io").read_text(encoding="ascii")
    return int(dict(line.split(": ") for line in counters.splitlines())["rchar"])


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = write_checkpoint(Path(scratch) / "llava", SEVEN_B, sparse=True)
        checkpoint = Checkpoint.open(path)
        size = sum(header.file_size for header in checkpoint.shards.values())
        start, before = time.perf_counter(), bytes_read()
        fingerprint = checkpoint.fingerprint
        seconds, read = time.perf_counter() - start, bytes_read() - before
    print(f"fingerprint {fingerprint} of {size / 1e9:.1f} GB: {seconds:.2f} s, {read / 1e6:.1f} MB read")


if __name__ == "__main__":
    main()
