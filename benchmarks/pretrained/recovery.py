"""What pruning leaves of the pretrained language model: perplexity over unpruned, by the command line alone.

``python -m benchmarks.pretrained.recovery [--device cuda] [--rates 0.2 0.333 0.5]``, after ``python -m
benchmarks.pretrained prepare``, makes SmolLM2-135M a checkpoint in bfloat16, chooses heads by ``fisher`` and by a
search from there, converts with ``least-squares`` and with ``distill``, and prints a row per rate. Some speeches are to
calibrate on, others to measure on. The rates run side by side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pretrained.__main__ import DATA

RATES = ("0.2", "0.333", "0.5")
FIT_WINDOWS, TRAINING_WINDOWS = 160, 316  # of 640 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rates", nargs="+", default=RATES)
    parser.add_argument("--search", type=float, default=40, help="seconds")
    parser.add_argument("--steps", type=int, default=300, help="of the distillation; 0 leaves it out")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--directory", type=Path, default=DATA, help="what prepare wrote")
    parser.add_argument("--gguf", type=Path, help="the language model's file, if it lies elsewhere")
    arguments = parser.parse_args()
    from benchmarks.pretrained.language_model import GGUF_NAME

    work: Path = arguments.directory / "recovery"
    work.mkdir(exist_ok=True)
    model, scores = work / "smollm2-135m", work / "scores.json"
    if not model.is_dir():
        write_language_model(arguments.gguf or arguments.directory / "packages" / GGUF_NAME, model)
    device = ("--device", arguments.device)
    data = ("--calibration", arguments.directory / "speeches-calibration.txt", "--num-samples")
    if not scores.is_file():
        how = ("--metric", "fisher", "--resident", *device, *data, FIT_WINDOWS, "--schedule", "global", "--rate", 0.5)
        run("mask", model, *how, "-o", work / "half.json", "--save-scores", scores, "--force")

    def of_rate(rate: str) -> list[Path]:
        outs = [work / f"{kind}-{rate}" for kind in ("least-squares", "searched", "distilled")]
        fisher, searched = (work / f"{kind}-{rate}.json" for kind in ("fisher", "search"))
        made = ("--scores", scores, "--schedule", "global", "--rate", rate, "--force")
        run("mask", *made, "-o", fisher)
        run("mask", model, *made, "-o", searched, "--search", arguments.search, *device, *data, FIT_WINDOWS)
        training = ("--steps", arguments.steps, "--learning-rate", arguments.learning_rate)
        for out, mask, more in (
            (outs[0], fisher, (FIT_WINDOWS,)),
            (outs[1], searched, (FIT_WINDOWS,)),
            (outs[2], searched, (TRAINING_WINDOWS, "--compensate", "distill", *training)),
        ):
            if arguments.steps or out != outs[2]:
                run(model, out, "--mask", mask, *device, *data, *more, "--force")
        return outs if arguments.steps else outs[:2]

    with ThreadPoolExecutor(len(arguments.rates)) as pool:
        outs = [out for of_one in pool.map(of_rate, arguments.rates) for out in of_one]
    text = ("--text", arguments.directory / "speeches-held-out.txt", "--dtype", "float32")
    told = json.loads(run("evaluate", model, *outs, *text, *device, "--json"))
    found = {name: one["text_perplexity"] for name, one in told["checkpoints"].items()}
    unpruned = found[str(model)]
    print(f"perplexity of held-out speeches, unpruned: {unpruned:.2f}; over it:")
    print(f"{'rate':>6}  {'least-squares':>13}  {'with search':>11}  {'distill':>7}")
    for rate in arguments.rates:
        row = [found[str(out)] / unpruned for out in outs if out.name.endswith(f"-{rate}")]
        print(
            f"{rate:>6}  " + "  ".join(f"{ratio:>{width}.3f}" for ratio, width in zip(row, (13, 11, 7), strict=False))
        )


def run(*arguments: object) -> str:
    """What ``s4convert`` prints; its messages go to stderr."""
    command = [sys.executable, "-m", "s4convert", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def write_language_model(gguf: Path, directory: Path) -> None:
    """The language model alone, in bfloat16, as a checkpoint."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.pretrained.language_model import END, UNKNOWN, Gguf, tokenizer_json

    source = Gguf(gguf)
    directory.mkdir()
    weights = {name: tensor.to(torch.bfloat16).contiguous().clone() for name, tensor in source.weights().items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    special = {"bos_token": UNKNOWN, "eos_token": END, "unk_token": UNKNOWN}
    files: dict[str, dict[str, Any]] = {
        "config.json": source.config() | {"torch_dtype": "bfloat16"},
        "tokenizer_config.json": special | {"tokenizer_class": "PreTrainedTokenizerFast"},
        "special_tokens_map.json": special,
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    (directory / "tokenizer.json").write_text(tokenizer_json(source.tokenizer()))


if __name__ == "__main__":
    main()
