"""Makes the reports in docs/examples again: ``python -m benchmarks.examples`` (half a minute)."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.mini.questions import write_scienceqa
from s4convert.demo import MINI_LLAVA, QUESTIONS
from tests.support.synthetic import Spec, write_checkpoint

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
LARGE = Spec(num_layers=32, num_kv_heads=32, hidden_size=64, intermediate_size=96)

DATA = ("--calibration", "questions.json", "--images", "questions")
ASKED = ("--evaluate", "questions.json", "--evaluate-images", "questions", "--conversation", "vicuna_v1")
PROBE = ("--probe", "probe.json", "--probe-images", "probe")
REPORTS = {
    "scale": ("mini-llava", "--mask", "mask.json"),
    "least-squares": ("mini-llava", "--mask", "mask.json", *DATA),
    "evaluated": ("mini-llava", "--mask", "mask.json", *DATA, *ASKED, *PROBE),
    "synthetic-32x32": ("synthetic-32x32", "--mask", "mask-32x32.json"),
}


def main() -> None:
    """Work in a directory of its own, so that no path of this machine is in a report."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        shutil.copytree(MINI_LLAVA, directory / "mini-llava")
        shutil.copytree(QUESTIONS, directory / "questions")
        shutil.move(directory / "questions" / "questions.json", directory)
        write_scienceqa(directory / "drawn", num_image=8, num_text=8, seed=3)
        shutil.move(directory / "drawn" / "images", directory / "probe")
        shutil.move(directory / "drawn" / "questions.json", directory / "probe.json")
        write_checkpoint(directory / "synthetic-32x32", LARGE)

        def run(*arguments: str) -> None:
            command = (sys.executable, "-m", "s4convert", *arguments)
            subprocess.run(command, cwd=directory, check=True, stdout=subprocess.DEVNULL)

        how = ("--schedule", "global", "--rate")
        run("mask", "mini-llava", "--metric", "energy", *how, "0.25", *DATA, "-o", "mask.json")
        run("mask", "synthetic-32x32", "--metric", "magnitude", *how, "0.33", "-o", "mask-32x32.json")
        for name, (source, *options) in REPORTS.items():
            shutil.rmtree(directory / "OUT", ignore_errors=True)
            run(source, "OUT", *options, "--report", f"{name}.html")
            shutil.copy(directory / f"{name}.html", EXAMPLES)


if __name__ == "__main__":
    main()
