"""The commands that the battery disturbs, and what may stand where their output goes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from s4convert import cli
from s4convert.calibration.statistics import DESCRIPTION_FILE
from s4convert.demo import MINI_LLAVA, QUESTIONS
from tests.support.command_line import run_here
from tests.support.disk import digests
from tests.support.sweeps import rows_of
from tests.support.synthetic import Spec, write_checkpoint

tqdm.monitor_interval = 0  # it would start a thread, and a process with threads cannot be forked safely

SMALL = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
CALIBRATION = ("--calibration", "inputs/text.txt", "--window", "32")
TEXT = "The box has two. The cup has three. The farm has one. " * 10


@dataclass(frozen=True)
class Command:
    """A command whose *arguments* name what stands in the directory *top*.

    Its inputs are in ``top/inputs``, its *output* in ``top/work``, of which *look* says what stands there: a text that
    is the same for two outputs that are the same, or None where there is nothing. *before* puts an older output in
    place; further outputs stand *beside* it. They all may replace an output, so that a second run has the same
    arguments, but for one that *refuses* a second run.
    """

    name: str
    top: Path
    arguments: tuple[str, ...]
    output: str
    look: Callable[[Path], str | None]
    beside: tuple[str, ...] = ()
    refuses: bool = False
    before: Callable[[], object] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> Path:
        return self.top / "inputs"

    @property
    def work(self) -> Path:
        return self.top / "work"

    @property
    def said(self) -> Path:
        """Where its stdout and stderr go."""
        return self.top / "said"

    def set_up(self) -> None:
        """Leave in ``work`` what stands there before a run, and nothing else."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        self.said.mkdir(exist_ok=True)
        if self.before is not None:
            self.before()

    def redirect(self) -> None:
        """Let this process speak into files; for a forked child."""
        for number, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(self.said / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(file, number)
            os.close(file)

    def run(self) -> NoReturn:
        """Be the command; for a forked child."""
        os.chdir(self.top)
        os.environ |= self.environment
        sys.argv = ["s4convert", *self.arguments]
        cli.main()

    def state(self) -> str | None:
        return self.look(self.work / self.output)

    def left_beside(self) -> list[str]:
        """What stands in ``work`` beside the output."""
        return sorted(name for name in os.listdir(self.work) if name not in (self.output, *self.beside))

    @property
    def stderr(self) -> str:
        return (self.said / "stderr").read_text(errors="replace")

    def import_everything(self) -> None:
        """By running it here once."""
        self.set_up()
        os.environ |= self.environment
        _run(self.top, *self.arguments)


def of_directory(directory: Path) -> str | None:
    return json.dumps(digests(directory)) if directory.exists() else None


def of_file(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def of_statistics(directory: Path) -> str | None:
    """What a directory of statistics holds, or None where nothing says that it is one."""
    return of_directory(directory) if (directory / DESCRIPTION_FILE).exists() else None


def of_sweep(directory: Path) -> str | None:
    """The rows of the summary, which are the last to be written; what is measured once may stand there before."""
    if not (directory / "summary.md").exists():
        for path in directory.glob("points/*.json"):
            json.loads(path.read_text())
        return None
    return json.dumps(rows_of(directory))


def make_small_inputs(top: Path) -> None:
    """The checkpoints and masks that take no time, and no torch."""
    inputs = top / "inputs"
    inputs.mkdir(parents=True)
    write_checkpoint(inputs / "small", SMALL)
    for name, heads in (("mask", [0, 2]), ("old-mask", [1])):
        (inputs / f"{name}.json").write_text(json.dumps({"pruned_heads": {"1": heads}}))
    for out, mask in (("old", "old-mask"), ("converted", "mask")):
        _run(top, "inputs/small", f"inputs/{out}", "--mask", f"inputs/{mask}.json", "--no-verify")


def make_inputs(top: Path) -> None:
    """What all commands read."""
    make_small_inputs(top)
    inputs = top / "inputs"
    _write_torch_checkpoint(inputs / "small", inputs / "torch")
    shutil.copytree(MINI_LLAVA, inputs / "mini")
    mini = {"2": [1, 3, 5], "4": [0, 7], "5": [2]}
    (inputs / "mini-mask.json").write_text(json.dumps({"pruned_heads": mini, "num_layers": 8, "num_heads": 8}))
    (inputs / "text.txt").write_text(TEXT)
    (inputs / "sentence.txt").write_text("The box has two.\n")
    questions = json.loads((QUESTIONS / "questions.json").read_text())[:2]
    (inputs / "questions.json").write_text(json.dumps(questions))
    for image in QUESTIONS.glob("*.png"):
        shutil.copy(image, inputs)
    mini_mask = ("--mask", "inputs/mini-mask.json", "--no-verify", "--no-card")
    _run(top, "inputs/mini", "inputs/mini-converted", *mini_mask)


def _run(top: Path, *arguments: str) -> None:
    os.chdir(top)
    outcome = run_here(*arguments)
    assert outcome.exit_code == 0, outcome


def _write_torch_checkpoint(source: Path, directory: Path) -> None:
    """The checkpoint *source* in ``.bin`` files."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(source, directory)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    names = {}
    for number, shard in enumerate(sorted(directory.glob("*.safetensors")), start=1):
        names[shard.name] = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(load_file(shard), directory / names[shard.name])
        shard.unlink()
    index["weight_map"] = {tensor: names[shard] for tensor, shard in index["weight_map"].items()}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors.index.json").unlink()


def commands_in(top: Path) -> dict[str, Command]:
    """Every command by its name; :func:`make_inputs` has made what they read."""
    old = partial(_copy, top / "inputs" / "old", top / "work" / "out")
    convert = ("--mask", "inputs/mask.json", "--no-verify", "--jobs", "1")
    asked = ("--questions", "inputs/questions.json", "--images", "inputs", "--conversation", "vicuna_v1")
    swept = ("--text", "inputs/sentence.txt", "--rates", "0.1,0.3", "--metrics", "magnitude", *CALIBRATION)

    def command(name: str, output: str, look: Callable[[Path], str | None], *arguments: str, **more: Any) -> Command:
        forced = () if arguments[0] == "sweep" else ("--force",)
        return Command(name, top, (*arguments, *forced), output, look, **more)

    calibrated = ("inputs/mini", "work/out", "--mask", "inputs/mini-mask.json", *CALIBRATION, "--jobs", "1")
    found = [
        command("conversion", "out", of_directory, "inputs/small", "work/out", *convert),
        command("replacement", "out", of_directory, "inputs/small", "work/out", *convert, before=old),
        command("conversion of .bin", "out", of_directory, "inputs/torch", "work/out", *convert),
        command("calibrated conversion", "out", of_directory, *calibrated),
        command(
            "statistics",
            "statistics",
            of_statistics,
            *(*calibrated, "--no-verify", "--save-statistics", "work/statistics"),
            beside=("out",),
            refuses=True,
        ),
        command(
            "mask",
            "mask.json",
            of_file,
            *("mask", "inputs/mini", "-o", "work/mask.json", "--metric", "magnitude"),
            *("--schedule", "uniform", "--rate", "0.25"),
        ),
        command(
            "evaluate",
            "samples.jsonl",
            of_file,
            *("evaluate", "inputs/mini", "inputs/mini-converted", *asked, "--samples", "work/samples.jsonl"),
        ),
        command("sweep", "results", of_sweep, "sweep", "inputs/mini", "-o", "work/results", *swept),
        command("report", "report.html", of_file, "report", "inputs/converted", "-o", "work/report.html"),
    ]
    return {one.name: one for one in found}


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
