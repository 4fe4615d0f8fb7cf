"""Multiple-choice questions in the ScienceQA format, made from nothing but a seed.

Image questions ask about coloured shapes in a 2x2 grid, text-only questions about a few facts in a
context. A *scene* holds what can be asked; :meth:`Scene.ask` draws one question about it. The same seed
gives the same questions and the same pixels on every machine.

``python -m benchmarks.mini.questions DIR --image 200 --text 200 --seed 1`` writes the files that LLaVA's
own evaluation scripts (``llava.eval.model_vqa_science`` and ``llava.eval.eval_science_qa``) read.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

TRAINING_SEED = 20_000_000  # worker w of a training run draws from TRAINING_SEED + w
HELD_OUT_SEED = 1

LETTERS = "ABCDE"

IMAGE_SIZE = 56
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (235, 215, 50),
    "purple": (150, 50, 175),
    "orange": (240, 140, 30),
}
SHAPES = ("circle", "square", "triangle", "cross")
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("one", "two", "three", "four")
ITEMS = (
    "box", "cup", "bag", "jar", "tree", "boat", "farm", "shop",
    "lake", "park", "ship", "barn", "desk", "cart", "tent", "nest",
)  # fmt: skip
AMOUNTS = (*COUNTS, "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Question:
    """One question: ``choices[answer]`` is right."""

    text: str
    choices: tuple[str, ...]
    answer: int

    @property
    def letter(self) -> str:
        return LETTERS[self.answer]

    @property
    def word(self) -> str:
        return self.choices[self.answer]

    def with_options(self) -> str:
        """The question and its lettered options, as ScienceQA's prompts spell them."""
        return "\n".join([self.text, *(f"{LETTERS[i]}. {c}" for i, c in enumerate(self.choices))])


def _choose(rng: random.Random, text: str, right: str, pool: tuple[str, ...], among: int = 4) -> Question:
    wrong = rng.sample([word for word in pool if word != right], min(among, len(pool)) - 1)
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Question(text, tuple(choices), choices.index(right))


@dataclass(frozen=True)
class ShapesScene:
    """One to four shapes, all of different shape and colour, each in its own cell of a 2x2 grid."""

    shapes: tuple[tuple[str, str, str], ...]  # (shape, colour, position)
    seed: int

    context = ""

    @staticmethod
    def make(rng: random.Random) -> ShapesScene:
        count = rng.choice((1, 2, 2, 3, 3, 4))
        parts = zip(
            rng.sample(SHAPES, count), rng.sample(sorted(COLORS), count), rng.sample(POSITIONS, count), strict=True
        )
        return ShapesScene(tuple(parts), rng.getrandbits(32))

    def ask(self, rng: random.Random) -> Question:
        shape, color, position = rng.choice(self.shapes)
        kind = rng.choice(("color", "color", "shape", "shape", "position", "position", "count"))
        if kind == "color":
            return _choose(rng, f"What color is the {shape}?", color, tuple(COLORS))
        if kind == "shape":
            return _choose(rng, f"Which shape is {color}?", shape, SHAPES)
        if kind == "position":
            return _choose(rng, f"What color is the shape at the {position}?", color, tuple(COLORS))
        return _choose(rng, "How many shapes are there?", COUNTS[len(self.shapes) - 1], COUNTS)

    def draw(self) -> Image.Image:
        """The scene as an RGB picture of IMAGE_SIZE x IMAGE_SIZE, with jitter and noise from its seed."""
        rng = np.random.Generator(np.random.PCG64(self.seed))
        background = tuple(int(v) for v in rng.integers(195, 245, 3))
        image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
        pen = ImageDraw.Draw(image)
        cell = IMAGE_SIZE // 2
        for shape, color, position in self.shapes:
            index = POSITIONS.index(position)
            x = (index % 2) * cell + cell / 2 + rng.uniform(-3, 3)
            y = (index // 2) * cell + cell / 2 + rng.uniform(-3, 3)
            r = rng.uniform(7.5, 10.5)
            fill = tuple(int(np.clip(v + rng.integers(-18, 19), 0, 255)) for v in COLORS[color])
            if shape == "circle":
                pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
            elif shape == "square":
                pen.rectangle((x - r * 0.85, y - r * 0.85, x + r * 0.85, y + r * 0.85), fill=fill)
            elif shape == "triangle":
                pen.polygon([(x, y - r), (x - r, y + r * 0.8), (x + r, y + r * 0.8)], fill=fill)
            else:
                pen.rectangle((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=fill)
                pen.rectangle((x - r * 0.3, y - r, x + r * 0.3, y + r), fill=fill)
        noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, 6, (IMAGE_SIZE, IMAGE_SIZE, 3))
        return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class FactsScene:
    """Three to five facts, "the ITEM has AMOUNT", all items and amounts different."""

    facts: tuple[tuple[str, str], ...]

    @staticmethod
    def make(rng: random.Random) -> FactsScene:
        count = rng.choice((3, 4, 5))
        return FactsScene(tuple(zip(rng.sample(ITEMS, count), rng.sample(AMOUNTS, count), strict=True)))

    @property
    def context(self) -> str:
        return "Context: " + " ".join(f"The {item} has {amount}." for item, amount in self.facts) + "\n"

    def ask(self, rng: random.Random) -> Question:
        item, amount = rng.choice(self.facts)
        items = tuple(i for i, _ in self.facts)
        amounts = tuple(a for _, a in self.facts)
        kind = rng.choice(("amount", "item", "most"))
        if kind == "amount":
            return _choose(rng, f"How many does the {item} have?", amount, amounts)
        if kind == "item":
            return _choose(rng, f"Which has {amount}?", item, items)
        most = max(self.facts, key=lambda fact: AMOUNTS.index(fact[1]))[0]
        return _choose(rng, "Which has the most?", most, items)


Scene = ShapesScene | FactsScene


def write_scienceqa(directory: Path, *, num_image: int, num_text: int, seed: int = HELD_OUT_SEED) -> None:
    """Write ``questions.json``, ``problems.json``, ``pid_splits.json`` and ``images/`` into *directory*."""
    rng = random.Random(seed)
    questions: list[dict[str, object]] = []
    problems: dict[str, dict[str, object]] = {}
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for number in range(num_image + num_text):
        scene: Scene = ShapesScene.make(rng) if number < num_image else FactsScene.make(rng)
        question = scene.ask(rng)
        name = str(number + 1)
        entry: dict[str, object] = {"id": name}
        text = scene.context + question.with_options()
        if isinstance(scene, ShapesScene):
            entry["image"] = f"{name}.png"
            scene.draw().save(directory / "images" / f"{name}.png")
            text = "<image>\n" + text
        entry["conversations"] = [{"from": "human", "value": text}, {"from": "gpt", "value": question.letter}]
        questions.append(entry)
        problems[name] = {"choices": list(question.choices), "answer": question.answer}
    for file, content in (
        ("questions.json", questions),
        ("problems.json", problems),
        ("pid_splits.json", {"test": list(problems)}),
    ):
        (directory / file).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--image", type=int, default=200, help="questions with an image")
    parser.add_argument("--text", type=int, default=200, help="questions without an image")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED)
    arguments = parser.parse_args()
    write_scienceqa(arguments.directory, num_image=arguments.image, num_text=arguments.text, seed=arguments.seed)
