"""Bad inputs of every command, by name, each with the exit code and the words that it ends with.

``python -m tests.attacks.bad_inputs`` runs all of them in one process and prints the counts. A case changes one of the
sound inputs that :func:`write_sound` makes, and gives a command that reads it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from tests.attacks.bad_input_cases import CASES, QUESTIONS, SAMPLE, SCORES, STUDY, Case
from tests.battery.headers import write_shards
from tests.support.command_line import ERROR, run_here
from tests.support.disk import snapshot
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint

SPEC = Spec(num_layers=2, num_kv_heads=4, hidden_size=16)
LONGEST_ERROR = 1500  # letters
COMMANDS = ("inspect", "verify", "report", "push", "reproduce", "mask", "evaluate", "compare", "sweep", "demo")


def write_sound(directory: Path) -> None:
    """Inputs of every kind, with which every command of :data:`SOUND` ends well."""
    import torch

    from s4convert import convert
    from s4convert.calibration.moments import Moments
    from s4convert.calibration.statistics import DESCRIPTION_FILE, Statistics, _description
    from s4convert.checkpoint import Checkpoint

    for name in ("in", "single", "bin"):
        write_checkpoint(directory / name, SPEC)
    weights = directory / "bin" / "model.safetensors"
    tensors = {
        name: torch.frombuffer(bytearray(data), dtype=torch.float16).reshape(shape)
        for name, (_, shape, data) in read_safetensors(weights).items()
    }
    torch.save(tensors, directory / "bin" / "pytorch_model.bin")
    weights.unlink()
    (directory / "indexed").mkdir()
    shutil.copy(directory / "in" / "config.json", directory / "indexed" / "config.json")
    write_shards(directory / "indexed")
    files: dict[str, Any] = {
        "mask.json": {"pruned_heads": {"1": [0, 2]}},
        "scores.json": {"format": "s4convert-scores/1", "num_layers": 2, "num_heads": 4, "scores": SCORES},
        "questions.json": QUESTIONS,
        "samples.jsonl": SAMPLE,
        "study.yaml": {"questions": "questions.json", "rates": "0.25"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "texts.txt").write_text("Two words.\nThree more words.\n")
    (directory / "images").mkdir()
    convert(directory / "in", directory / "out", directory / "mask.json", check_behaviour=False)
    checkpoint = Checkpoint.open(directory / "in")
    statistics = Statistics(directory / "statistics")
    statistics.directory.mkdir()
    columns = np.random.Generator(np.random.PCG64(0)).normal(size=(40, 16))
    moments = Moments(torch.from_numpy(columns.T @ columns / 40), columns.mean(axis=0), 40)
    for layer in range(2):
        statistics.save(layer, {"train": {"text": moments, "image": None}, "held_out": {"text": None, "image": None}})
    (statistics.directory / DESCRIPTION_FILE).write_text(json.dumps(_description(checkpoint) | {"calibration": {}}))
    (directory / "results" / "points").mkdir(parents=True)
    (directory / "results" / "study.json").write_text(json.dumps(STUDY))


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Let *directory* be the working directory of the block."""
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def faults_of(case: Case, sound: Path, directory: Path) -> list[str]:
    """Run *case* in the empty *directory*, on copies of what it reads of the inputs in *sound*; what is wrong then."""
    for path in sound.iterdir():
        if path.name in case.inputs:
            (shutil.copytree if path.is_dir() else shutil.copy)(path, directory / path.name)
    with inside(directory):
        case.spoil()
        before = snapshot(directory)
        outcome = run_here(*case.command)
    faults = []
    last = outcome.stderr.splitlines()[-1] if outcome.stderr.strip() else ""
    if outcome.exit_code != case.exit_code:
        faults.append(f"exit code {outcome.exit_code}, not {case.exit_code}")
    if "Traceback" in outcome.stderr or not last.startswith(ERROR):
        faults.append("no error in one line")
    if case.message not in last:
        faults.append(f"does not say {case.message!r}")
    if len(last) > LONGEST_ERROR:
        faults.append(f"an error of {len(last):,} letters")
    if any(not letter.isprintable() and letter != "\n" for letter in outcome.stdout + outcome.stderr):
        faults.append("a letter that a terminal obeys")
    if (directory / "ran").exists():
        faults.append("code was run")
    if case.command[0] != "sweep" and snapshot(directory) != before:  # which keeps what it did until then
        faults.append("something was written")
    return [f"{case.name}: {fault}: {last[:300]}" for fault in faults]


@click.command()
def main() -> None:
    """Run every bad input in this process, and print the counts."""
    exit_codes, commands, faults = Counter[int](), Counter[str](), list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        sound = Path(scratch) / "sound"
        sound.mkdir()
        write_sound(sound)
        for number, case in enumerate(CASES):
            directory = Path(scratch) / str(number)
            directory.mkdir()
            faults += faults_of(case, sound, directory)
            exit_codes[case.exit_code] += 1
            commands[case.command[0] if case.command[0] in COMMANDS else "convert"] += 1
            shutil.rmtree(directory)
    click.echo(f"{len(CASES)} bad inputs: " + ", ".join(f"{count} of {name}" for name, count in commands.most_common()))
    click.echo(
        "ended with exit code " + ", ".join(f"{code} {count} times" for code, count in sorted(exit_codes.items()))
    )
    click.echo(f"{len(faults)} that did not end as they must")
    for fault in faults:
        click.echo(f"  {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
