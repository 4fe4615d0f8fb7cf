"""A sweep with one worker on a GPU, and with as many workers as there are GPUs.

The model has the front end of the mini LLaVA and a language model of random weights, large enough for a point to take
some seconds. ``python -m benchmarks.sweep_on_gpus [--workers N]`` prints the time of each sweep, and their ratio;
without a GPU, workers have a processor each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.mini.questions import write_scienceqa
from s4convert.demo import MINI_LLAVA
from tests.support.sweeps import rows_of

RATES = "0.125,0.25,0.375,0.5,0.625,0.75"
COMPENSATIONS = "none,scale"


def main() -> None:
    import torch

    gpus = torch.cuda.device_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=max(2, gpus))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden-size", type=int, default=2048)
    parser.add_argument("--questions", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = write_larger(Path(scratch) / "llava", arguments.layers, arguments.hidden_size)
        write_scienceqa(Path(scratch) / "asked", num_image=0, num_text=arguments.questions)
        command = [
            *(sys.executable, "-m", "s4convert", "sweep", str(checkpoint), "--rates", RATES),
            *("--metrics", "magnitude", "--compensations", COMPENSATIONS, "--conversation", "vicuna_v1"),
            *("--questions", str(Path(scratch) / "asked" / "questions.json"), "--ray", "local"),
            *("--batch-size", "32", "--max-new-tokens", str(arguments.new_tokens)),
            *("--device", "cuda" if gpus else "cpu"),
        ]
        seconds, rows = {}, {}
        for workers in (1, arguments.workers):
            out = Path(scratch) / f"results-{workers}"
            seconds[workers], rows[workers] = swept(command, out, workers, on_gpus=gpus > 0)
            print(f"{workers} worker(s): {len(rows[workers]) - 1} points and the baseline in {seconds[workers]:.1f} s")
        print(
            f"{seconds[1] / seconds[arguments.workers]:.2f} times as fast; equal: {rows[1] == rows[arguments.workers]}"
        )


def write_larger(path: Path, layers: int, hidden_size: int) -> Path:
    """The mini LLaVA with a random language model of *layers* layers and *hidden_size*, in bfloat16."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config: dict[str, Any] = json.loads((MINI_LLAVA / "config.json").read_text())
    config["text_config"] |= {"hidden_size": hidden_size, "intermediate_size": 4 * hidden_size}
    config["text_config"] |= {"num_hidden_layers": layers, "head_dim": hidden_size // 8}
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlavaForConditionalGeneration(LlavaConfig.from_dict(config)).save_pretrained(path)
    torch.set_default_dtype(torch.float32)
    for file in MINI_LLAVA.iterdir():
        if "safetensors" not in file.name and file.name not in ("config.json", "generation_config.json"):
            shutil.copy(file, path)
    return path


def swept(command: list[str], out: Path, workers: int, *, on_gpus: bool) -> tuple[float, list[dict[str, str]]]:
    """(seconds that *command* takes on *workers*, the rows of its summary, times aside)."""
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(workers)))} if on_gpus else {}
    cpus = [] if on_gpus else ["--ray-cpus", str(max(1, (os.cpu_count() or 1) // workers))]
    start = time.perf_counter()
    subprocess.run([*command, "-o", str(out), *cpus], check=True, env=os.environ | visible, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return seconds, rows_of(out)


if __name__ == "__main__":
    main()
