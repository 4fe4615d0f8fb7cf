"""Distillation: what it brings on the mini LLaVA, or how long it takes at the shape of a 7B model.

``python -m benchmarks.distill [--steps N] [--learning-rate RATE]`` prunes 3 of 8 heads in the mean, by
``reconstruction``, and prints image and text accuracy over 400 held-out questions, and the KL to the original on
held-out calibration samples, a row each: unpruned, none, least-squares and distill. It trains on 2,850 other
questions. Some 15 minutes on two cores.

``python -m benchmarks.distill --shape 7b --device cuda`` prints seconds a step and peak memory for steps of 4 x 640
tokens, a third of the heads pruned. Weights and samples are synthetic.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

SAMPLES, HOLDOUT = 3_000, 0.05
CALIBRATION_SEED = 77
TOKENS, TIMED_STEPS = 640, 20
PRUNED = tuple(range(0, 32, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("mini", "7b"), default="mini")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="questions to train on, half of them with an image"
    )
    parser.add_argument("--questions", type=int, default=400, help="asked, half of them with an image")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--schedule", default="uniform")
    parser.add_argument("--layers", type=int, default=32, help="of the shape 7b")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (on_the_mini_llava if arguments.shape == "mini" else at_7b_shape)(Path(scratch), arguments)


def on_the_mini_llava(scratch: Path, arguments: argparse.Namespace) -> None:
    import s4convert
    from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
    from s4convert.demo import MINI_LLAVA

    asked, calibration = scratch / "asked", scratch / "calibration"
    write_scienceqa(asked, num_image=arguments.questions // 2, num_text=arguments.questions // 2, seed=HELD_OUT_SEED)
    num = arguments.samples // 2
    write_scienceqa(calibration, num_image=num, num_text=num, seed=CALIBRATION_SEED)
    data = {"calibration": calibration / "questions.json", "images": calibration / "images"}
    mask = s4convert.make_mask(
        MINI_LLAVA, metric="reconstruction", schedule=arguments.schedule, rate="0.375", num_samples=400, **data
    ).mask
    outs = []
    for mode in ("none", "least-squares", "distill"):
        outs.append(scratch / f"mini-llava-{mode}")
        fitted = data | {"device": arguments.device} if mode != "none" else {}
        given = {"steps": arguments.steps, "learning_rate": arguments.learning_rate} if mode == "distill" else {}
        given |= {"holdout": HOLDOUT} if mode != "none" else {}
        start = time.perf_counter()
        report = s4convert.convert(MINI_LLAVA, outs[-1], mask, compensation=mode, progress=True, **fitted, **given)
        print(f"{mode}: {time.perf_counter() - start:.0f} s")
    print("\n".join(line for line in report.to_text().splitlines() if line.startswith(("training", "held out"))))
    evaluated = s4convert.evaluate(
        (MINI_LLAVA, *outs),
        questions=asked / "questions.json",
        images=asked / "images",
        conversation="vicuna_v1",
        device=arguments.device,
        batch_size=32,
        max_new_tokens=4,
    )
    print(evaluated.to_text())


def at_7b_shape(scratch: Path, arguments: argparse.Namespace) -> None:
    import torch

    from s4convert.calibration.inputs import Inputs
    from s4convert.checkpoint import Checkpoint
    from s4convert.compensation import fit
    from s4convert.compensation.distillation import BATCH, distill
    from s4convert.compensation.training import TrainingSettings
    from s4convert.mask import HeadMask
    from s4convert.model.resident import ResidentModel
    from tests.support.synthetic import SEVEN_B, write_checkpoint

    spec = replace(SEVEN_B, num_layers=arguments.layers, dtype="BF16")
    checkpoint = Checkpoint.open(write_checkpoint(scratch / "llava", spec, sparse=True))
    model = ResidentModel(checkpoint, device=arguments.device, progress=True)
    generator = torch.Generator(arguments.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model._parameters.values():
            parameter.normal_(0, 0.02, generator=generator)
    mask = HeadMask(spec.num_heads, (PRUNED,) * spec.num_layers)
    is_image = torch.zeros(TOKENS, dtype=torch.bool)
    samples = [
        Inputs(
            0.02 * torch.randn(1, TOKENS, spec.hidden_size, generator=torch.Generator().manual_seed(number)), is_image
        )
        for number in range(5 * BATCH)
    ]
    settings = TrainingSettings(steps=arguments.steps or TIMED_STEPS)
    times = []
    for steps in (1, settings.steps):
        start = time.perf_counter()
        refit = fit("none", checkpoint, mask, scratch)
        timed = replace(settings, steps=steps)
        fits = distill(checkpoint, mask, refit, model, samples[BATCH:], samples[:BATCH], timed, scratch, progress=True)
        times.append(time.perf_counter() - start)
    assert fits.training is not None
    seconds = (times[1] - times[0]) / (fits.training.checks[-1].step - 1)
    print(f"{seconds:.2f} s a step of {BATCH} x {TOKENS} tokens (with every tenth check), {times[0]:.0f} s around it")
    if arguments.device != "cpu":
        print(f"GPU peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
