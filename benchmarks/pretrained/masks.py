"""The masks that the study of the pretrained LLaVA measures: every metric at every rate, and searches from ``fisher``.

``python -m benchmarks.pretrained.masks [--device cuda]``, after ``python -m benchmarks.pretrained``, writes
``masks/METRIC-PERCENT.json`` and ``masks/search-PERCENT.json`` by the command line. What runs side by side shares the
device.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.pretrained.__main__ import CHECKPOINT_NAME, DATA
from benchmarks.pretrained.recovery import run

METRICS = ("energy", "reconstruction", "fisher")
PERCENTAGES = (10, 20, 33, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--search", type=float, default=60, help="seconds")
    parser.add_argument("--directory", type=Path, default=DATA, help="what prepare wrote")
    arguments = parser.parse_args()
    data: Path = arguments.directory
    model, masks = data / CHECKPOINT_NAME, data / "masks"
    masks.mkdir(exist_ok=True)
    files = (data / "calibration/questions.json", data / "speeches-calibration.txt", data / "novel-calibration.txt")
    calibration = [part for file in files for part in ("--calibration", file)]
    calibration += ["--images", data / "calibration/images", "--device", arguments.device]

    def mask(name: str, percentage: int, *how: object) -> None:
        rate = ("--schedule", "global", "--rate", percentage / 100)
        run("mask", *how, *rate, "-o", masks / f"{name}-{percentage}.json", "--force")

    def of_metric(metric: str) -> None:
        scores = masks / f"scores-{metric}.json"
        how = ("--loss", "answers", "--resident") if metric == "fisher" else ()
        mask(metric, 50, model, "--metric", metric, *how, *calibration, "--save-scores", scores)
        for percentage in PERCENTAGES:
            mask(metric, percentage, "--scores", scores)

    def searched(percentage: int) -> None:
        mask(
            "search",
            percentage,
            model,
            "--scores",
            masks / "scores-fisher.json",
            "--search",
            arguments.search,
            "--loss",
            "answers",
            *calibration,
        )

    for job, of in ((of_metric, METRICS), (searched, PERCENTAGES)):
        with ThreadPoolExecutor(len(of)) as pool:
            list(pool.map(job, of))
    print(masks)


if __name__ == "__main__":
    main()
