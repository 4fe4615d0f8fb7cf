"""Accuracy of converted mini LLaVAs by compensation, by LLaVA's own unmodified ScienceQA scripts.

``python -m benchmarks.mini.compensation [--questions N] [--plot FILE]``, in the environment of ``make stock``, prints
one row per mask and compensation: 1, 2, 3 and 4 of 8 heads of every layer pruned by ``energy`` or ``reconstruction``,
with every mode, and with least squares where image tokens weigh a tenth instead of half. Saliency and moments are of
400 questions that are not among those asked, half of them with an image. ``--plot`` needs matplotlib there.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

import s4convert
from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from benchmarks.mini.saliency import CALIBRATION_SEED
from benchmarks.mini.scienceqa import accuracy
from s4convert.calibration.moments import IMAGE_WEIGHT
from s4convert.calibration.statistics import CalibrationData, Statistics
from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from s4convert.mask import parse_schedule
from s4convert.mask.making import prune_lowest
from s4convert.saliency import score_heads
from tests.stock.scripts import Accuracy
from tests.support.modes import MAPS
from tests.support.original_layout import write_original_layout

METRICS = ("energy", "reconstruction")
TEXT_WEIGHTED = "least-squares, image 0.1"
ROWS = (*MAPS, TEXT_WEIGHTED)
RATES = {1: "0.125", 2: "0.25", 3: "0.375", 4: "0.5"}  # heads of 8

Found = dict[tuple[str, int, str], Accuracy]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=400, help="half of them with an image")
    parser.add_argument("--plot", type=Path, help="draw the table, as compensation.png")
    arguments = parser.parse_args()
    if find_spec("llava") is None:
        parser.error("there is no llava here; run `make stock`, then this with .stock-venv/bin/python")
    with tempfile.TemporaryDirectory() as scratch:
        found, unpruned = measure(Path(scratch), arguments.questions)
    print_table(found, unpruned)
    if arguments.plot:
        plot(found, unpruned, arguments.plot)


def measure(scratch: Path, num_questions: int) -> tuple[Found, Accuracy]:
    """The accuracy of every conversion, by (metric, heads pruned in a layer, mode), and of the unpruned model."""
    questions, calibration, original = (scratch / name for name in ("questions", "calibration", "llava-mini"))
    write_scienceqa(questions, num_image=num_questions // 2, num_text=num_questions // 2, seed=HELD_OUT_SEED)
    write_scienceqa(calibration, num_image=200, num_text=200, seed=CALIBRATION_SEED)
    write_original_layout(MINI_LLAVA, original, scratch / "tower")
    checkpoint = Checkpoint.open(original)
    data = CalibrationData(calibration / "questions.json", calibration / "images")
    evenly, text_weighted = (Statistics(scratch / "statistics", image_weight=weight) for weight in (IMAGE_WEIGHT, 0.1))
    evenly.gather(checkpoint, data, range(checkpoint.geometry.num_layers), progress=True)
    converted: dict[tuple[str, int, str], Path] = {}
    for metric in METRICS:
        scores = score_heads(checkpoint, metric, samples=data.read, progress=True)
        for heads, rate in RATES.items():
            mask = prune_lowest(scores, parse_schedule("uniform", rate))
            for row in ROWS:
                mode, moments = (row, evenly) if row in MAPS else ("least-squares", text_weighted)
                path = scratch / f"llava-mini-{metric}-{heads}-{ROWS.index(row)}"
                s4convert.convert(original, path, mask, compensation=mode, statistics=moments, check_behaviour=False)
                converted[metric, heads, row] = path
    paths = [original, *converted.values()]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as executor:
        answered = executor.map(accuracy, paths, [questions] * len(paths))
        unpruned, *others = tqdm(answered, total=len(paths), desc="checkpoints", disable=None)
    return dict(zip(converted, others, strict=True)), unpruned


def print_table(found: Found, unpruned: Accuracy) -> None:
    """Total, image and text accuracy in percent."""

    def cell(one: Accuracy) -> str:
        return f"{f'{one.total:.1%} {one.image:.1%} {one.text:.1%}':>22}"

    print(f"unpruned{'':<34}{cell(unpruned)}   (total, image, text)")
    print(f"{'mask':<16}{'compensation':<26}" + "".join(f"{f'{heads} of 8':>22}" for heads in RATES))
    for metric in METRICS:
        for row in ROWS:
            print(f"{metric:<16}{row:<26}" + "".join(cell(found[metric, heads, row]) for heads in RATES))


def plot(found: Found, unpruned: Accuracy, path: Path) -> None:
    """Total accuracy over the heads pruned, a curve per mode, a panel per metric."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained", dpi=120)
    for axes, metric in zip(figure.subplots(1, len(METRICS), sharey=True), METRICS, strict=True):
        for row in ROWS:
            totals = [100 * found[metric, heads, row].total for heads in RATES]
            axes.plot([0, *RATES], [100 * unpruned.total, *totals], marker="o", label=row)
        axes.set(title=f"heads chosen by {metric}", xlabel="heads pruned, of 8 in every layer", xticks=[0, *RATES])
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel="accuracy in %")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
