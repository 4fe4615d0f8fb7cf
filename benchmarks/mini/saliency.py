"""Accuracy of the mini LLaVA by what its heads were chosen by: saliency metric and schedule, without compensation.

``python -m benchmarks.mini.saliency [--questions N]`` prints, for 2, 3 and 4 of 8 heads pruned in the mean, one row
per metric and schedule; ``random`` is the mean of three seeds. Questions are held out; the calibration data are
100 others, half of them with an image. Answers are stock transformers' greedy ``generate``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from s4convert.demo import MINI_LLAVA
from s4convert.mask.files import load_scores

CALIBRATION_SEED = HELD_OUT_SEED + 1
RANDOM_SEEDS = (0, 1, 2)
METRICS = ("cross-attention", "energy", "reconstruction", "fisher", "magnitude", "random")
SCHEDULES = ("uniform", "adaptive", "global")
RATES = {2: "0.25", 3: "0.375", 4: "0.5"}  # heads of 8


@dataclass(frozen=True)
class Task:
    """One mask to try: *scores* is the file of the metric's scores, *seed* that of ``random``."""

    metric: str
    schedule: str
    heads: int
    seed: int
    scores: Path


def measure(task: Task, questions: Path) -> tuple[float, float]:
    """The shares of image and text questions that the pruned model answers right."""
    import torch

    import s4convert
    from benchmarks.mini.accuracy import accuracy
    from s4convert.mask import parse_schedule
    from s4convert.mask.making import prune_lowest

    torch.set_num_threads(1)
    mask = prune_lowest(load_scores(task.scores), parse_schedule(task.schedule, RATES[task.heads]))
    with tempfile.TemporaryDirectory() as scratch:
        s4convert.convert(MINI_LLAVA, Path(scratch, "pruned"), mask, compensation="none", check_behaviour=False)
        counts = accuracy(Path(scratch, "pruned"), questions)
    return counts["image"][0] / counts["image"][1], counts["text"][0] / counts["text"][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=400, help="half of them with an image")
    arguments = parser.parse_args()
    from s4convert.calibration.samples import read_samples
    from s4convert.checkpoint import Checkpoint
    from s4convert.saliency import score_heads

    with tempfile.TemporaryDirectory() as scratch:
        questions, calibration = Path(scratch, "questions"), Path(scratch, "calibration")
        half = arguments.questions // 2
        write_scienceqa(questions, num_image=half, num_text=half, seed=HELD_OUT_SEED)
        write_scienceqa(calibration, num_image=50, num_text=50, seed=CALIBRATION_SEED)
        samples = read_samples(calibration / "questions.json", calibration / "images")
        tasks = []
        for metric in METRICS:
            for seed in RANDOM_SEEDS if metric == "random" else (0,):
                scores = score_heads(
                    Checkpoint.open(MINI_LLAVA),
                    metric,
                    samples=samples,
                    seed=seed,
                    progress=True,
                )
                path = Path(scratch, f"{metric}-{seed}.json")
                scores.save(path)
                tasks += [Task(metric, schedule, heads, seed, path) for schedule in SCHEDULES for heads in RATES]
        found: dict[tuple[str, str, int], list[tuple[float, float]]] = defaultdict(list)
        # Not forked: torch's threads do not survive that.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=context) as executor:
            results = executor.map(measure, tasks, [questions] * len(tasks))
            for task, shares in zip(tasks, tqdm(results, total=len(tasks), desc="masks", disable=None), strict=True):
                found[task.metric, task.schedule, task.heads].append(shares)

    print("image / text accuracy in %, by heads pruned of 8 in the mean")
    print(f"{'metric':<17}{'schedule':<10}" + "".join(f"{heads:>16}" for heads in RATES))
    for metric in METRICS:
        for schedule in SCHEDULES:
            cells = []
            for heads in RATES:
                runs = found[metric, schedule, heads]
                image, text = (100 * sum(run[kind] for run in runs) / len(runs) for kind in (0, 1))
                cells.append(f"{f'{image:.1f} / {text:.1f}':>16}")
            print(f"{metric:<17}{schedule:<10}" + "".join(cells))


if __name__ == "__main__":
    main()
