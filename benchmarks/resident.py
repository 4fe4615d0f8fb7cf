"""A 7B-shaped language model, whole on a device: seconds to load it, to swap 10 of 32 heads of every layer in and out,
and to evaluate 64 questions.

Weights and questions are synthetic: a sparse checkpoint, drawn at random on the device, and prompts of 640 tokens.
``python -m benchmarks.resident [--device cuda] [--layers N]`` prints a line each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.support.synthetic import SEVEN_B, write_checkpoint

QUESTIONS, TOKENS, BATCH, NEW_TOKENS = 64, 640, 16, 8
PRUNED = tuple(range(0, 30, 3))


def main() -> None:
    import numpy as np
    import torch

    from s4convert.checkpoint import Checkpoint
    from s4convert.compensation import Fits, fit
    from s4convert.compensation.head_mix import HeadMix
    from s4convert.mask import HeadMask
    from s4convert.model.resident import ResidentModel
    from s4convert.study.evaluation import Task, Tasks, evaluate_model
    from s4convert.study.questions import Question
    from s4convert.study.swap import swapped

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--layers", type=int, default=SEVEN_B.num_layers)
    arguments = parser.parse_args()
    is_cuda = arguments.device == "cuda"

    def now() -> float:
        if is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    with tempfile.TemporaryDirectory() as scratch:
        spec = replace(SEVEN_B, num_layers=arguments.layers)
        checkpoint = Checkpoint.open(write_checkpoint(Path(scratch) / "llava", spec, sparse=True))
        start = now()
        model = ResidentModel(checkpoint, device=arguments.device, progress=True)
        size = sum(header.file_size for header in checkpoint.shards.values())
        print(f"load {size / 1e9:.1f} GB from the page cache: {now() - start:.1f} s, in {model.dtype}")
        generator = torch.Generator(arguments.device).manual_seed(0)
        with torch.no_grad():
            for parameter in model._parameters.values():
                parameter.normal_(0, 0.02, generator=generator)

        mask = HeadMask(spec.num_heads, (PRUNED,) * spec.num_layers)
        scale = fit("scale", checkpoint, mask, Path(scratch))
        kept = (spec.num_heads - len(PRUNED)) * spec.head_dim
        numbers = np.random.Generator(np.random.PCG64(0))
        transfer = numbers.normal(0, 0.01, (len(PRUNED) * spec.head_dim, kept))
        mixes = {
            layer: HeadMix(spec.head_dim, PRUNED, (mix.factors > 0).astype(np.float32), transfer)
            for layer, mix in scale.mixes.items()
        }
        for name, fits in (("scale", scale), ("a least-squares map", Fits("least-squares", mixes))):
            times = []
            for _ in range(6):
                start = now()
                with swapped(model, checkpoint, mask, fits):
                    entered = now()
                left = now()
                with swapped(model, checkpoint, mask, fits):
                    times.append((entered - start, left - entered))
            enter, leave = (statistics.median(column) for column in zip(*times[1:], strict=True))
            print(f"swap {name}: {enter:.2f} s in, {leave:.2f} s out (medians of {len(times) - 1})")

        tasks = []
        for number in range(QUESTIONS):
            hidden = 0.02 * torch.randn(1, TOKENS, spec.hidden_size, generator=torch.Generator().manual_seed(number))
            question = Question(str(number), "", None, ("A",), 4, "")
            tasks.append(Task(question, hidden[:, :-1], hidden, 1, (number,)))
        start = now()
        evaluate_model(
            model,
            Tasks(tuple(tasks), (), str, "", ""),
            batch_size=BATCH,
            max_new_tokens=NEW_TOKENS,
            progress=True,
        )
        print(f"evaluate {QUESTIONS} questions of {TOKENS} tokens, {NEW_TOKENS} new ones each: {now() - start:.1f} s")
        if is_cuda:
            print(f"GPU peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
