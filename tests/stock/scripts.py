"""LLaVA's own ScienceQA scripts, unmodified, each in a process of its own, on files that ``write_scienceqa`` wrote."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

ANSWERING_SCRIPT = "llava.eval.model_vqa_science"
SCORING_SCRIPT = "llava.eval.eval_science_qa"
RUN_ON_CPU = Path(__file__).with_name("run_on_cpu.py")

# So small a model gains little from a second thread, and two threads wait for each other on a busy machine.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers, as the scoring script counted them."""

    total: float
    image: float
    text: float


def answering_arguments(checkpoint: Path, questions: Path, answers: Path) -> list[str]:
    """What the answering script is given: greedy answers of *checkpoint* to *questions*, as LLaVA's README asks."""
    paths = {
        "--model-path": checkpoint,
        "--question-file": questions / "questions.json",
        "--image-folder": questions / "images",
        "--answers-file": answers,
    }
    options = ["--single-pred-prompt", "--temperature", "0", "--conv-mode", "vicuna_v1"]
    return [*(str(part) for pair in paths.items() for part in pair), *options]


def ask(checkpoint: Path, questions: Path, answers: Path, python: str = sys.executable) -> None:
    """Write the answers of *checkpoint* to the questions in the directory *questions* into the file *answers*."""
    _run(python, ANSWERING_SCRIPT, *answering_arguments(checkpoint, questions, answers))


def texts(answers: Path) -> dict[str, str]:
    """What was said to each question, word for word."""
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    return {line["question_id"]: line["text"] for line in lines}


def score(questions: Path, answers: Path, python: str = sys.executable) -> Accuracy:
    """Have the file *answers* scored; the scoring script's own files are left beside it."""
    _run(python, SCORING_SCRIPT, *scoring_arguments(questions, answers))
    return read_accuracy(answers)


def scoring_arguments(questions: Path, answers: Path) -> list[str]:
    """What the scoring script is given: its own files go beside *answers*."""
    judged, summary = answers.with_suffix(".judged.json"), answers.with_suffix(".summary.json")
    outputs = ["--output-file", str(judged), "--output-result", str(summary)]
    return ["--base-dir", str(questions), "--result-file", str(answers), *outputs]


def read_accuracy(answers: Path) -> Accuracy:
    """What the scoring script wrote of *answers*."""
    judged, summary = answers.with_suffix(".judged.json"), answers.with_suffix(".summary.json")
    verdicts = [
        (verdict == "correct", entry["is_multimodal"])
        for verdict, entries in json.loads(judged.read_text()).items()
        for entry in entries
    ]
    kinds = ([right for right, image in verdicts if image is wanted] for wanted in (True, False))
    shares = [sum(kind) / len(kind) for kind in kinds]
    return Accuracy(json.loads(summary.read_text())["acc"] / 100, *shares)


def run_here(script: str, arguments: Sequence[str], patch: pytest.MonkeyPatch, after_loading: Any = None) -> None:
    """Run *script* in this process, which has no GPU; *after_loading* is called with the model that it loads."""
    import llava.model.builder
    import llava.utils
    import torch

    load = llava.model.builder.load_pretrained_model

    def load_here(*given: Any) -> Any:
        tokenizer, model, *others = load(*given, device="cpu")
        if after_loading is not None:
            after_loading(model)
        return tokenizer, model, *others

    with patch.context() as patched:
        patched.setattr(llava.model.builder, "load_pretrained_model", load_here)
        patched.setattr(llava.utils, "disable_torch_init", lambda: None)  # it changes torch for the tests that follow
        patched.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
        patched.setattr(sys, "argv", [script, *arguments])
        runpy.run_module(script, run_name="__main__", alter_sys=True)


def _run(python: str, script: str, *arguments: str) -> None:
    done = subprocess.run(
        [python, str(RUN_ON_CPU), script, *arguments],
        env=os.environ | ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{script} ended with exit code {done.returncode}:\n{done.stderr}")
