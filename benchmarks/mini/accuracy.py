"""Accuracy of a checkpoint on held-out ScienceQA-format questions, by stock transformers' greedy ``generate``.

``python -m benchmarks.mini.accuracy CHECKPOINT ...`` prints one row per checkpoint: image questions,
text-only questions, and the image questions again with the image blanked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from benchmarks.mini.questions import HELD_OUT_SEED, LETTERS, write_scienceqa
from s4convert.jobs.demo import Chat


def accuracy(checkpoint: Path, questions: Path, *, blank: bool = False) -> dict[str, tuple[int, int]]:
    """(right, asked) for ``image`` and ``text`` questions; *blank* greys every image out."""
    chat = Chat(checkpoint)
    problems = json.loads((questions / "problems.json").read_text())
    counts = {"image": [0, 0], "text": [0, 0]}
    for entry in tqdm(
        json.loads((questions / "questions.json").read_text()), desc=checkpoint.name, leave=False, disable=None
    ):
        image = Image.open(questions / "images" / entry["image"]).convert("RGB") if "image" in entry else None
        if blank:
            if image is None:
                continue
            image = Image.new("RGB", image.size, (128, 128, 128))
        said = chat.answer(entry["conversations"][0]["value"], image)
        count = counts["image" if image is not None else "text"]
        count[0] += said == LETTERS[problems[entry["id"]]["answer"]]
        count[1] += 1
    return {kind: (right, asked) for kind, (right, asked) in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--questions", type=int, default=200, help="of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        questions = Path(scratch)
        write_scienceqa(questions, num_image=arguments.questions, num_text=arguments.questions, seed=HELD_OUT_SEED)
        print(f"{'checkpoint':<32} {'image':>8} {'text':>8} {'blanked image':>14}")
        for checkpoint in arguments.checkpoints:
            seen = accuracy(checkpoint, questions)
            blanked = accuracy(checkpoint, questions, blank=True)
            shares = [right / asked for right, asked in (seen["image"], seen["text"], blanked["image"])]
            print(f"{checkpoint.name:<32} {shares[0]:>8.1%} {shares[1]:>8.1%} {shares[2]:>14.1%}")


if __name__ == "__main__":
    main()
