"""Questions about drawings, and about facts in a context, with answers by letter or by word.

A *scene* holds what can be asked; :meth:`ask` draws one question. The same seed gives the same questions.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mini.questions import Question
from benchmarks.pretrained.drawings import Drawings

HELD_OUT_SEED, CALIBRATION_SEED, TRAINING_SEED = 1, 2, 30_000_000
WORD_INSTRUCTION = "Answer the question using a single word or phrase."

WHAT, AMONG_CHOICES = "What is this?", "Which of these is it?"
_WHAT = (WHAT, AMONG_CHOICES, "What is shown in the picture?", "What does the picture show?")
_PEOPLE = (
    "Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Karen", "Leo",
    "Maria", "Nick", "Olivia", "Peter", "Rosa", "Sam", "Tina", "Victor",
)  # fmt: skip
_PLACES = (
    "kitchen", "garden", "garage", "attic", "cellar", "office", "school", "library", "barn", "shop",
    "museum", "station", "hotel", "market", "church", "theater",
)  # fmt: skip
_DEEDS = (("bought", "buy"), ("found", "find"), ("lost", "lose"), ("painted", "paint"), ("wanted", "want"))
_AMOUNTS = ("3", "5", "8", "12", "15", "20", "24", "30", "36", "45", "50", "60", "75", "80", "99", "120")


def _choose(rng: random.Random, text: str, right: str, pool: Sequence[str], among: int) -> Question:
    wrong = rng.sample([choice for choice in pool if choice != right], min(among, len(pool)) - 1)
    choices = [right, *wrong]
    rng.shuffle(choices)
    return Question(text, tuple(choices), choices.index(right))


class Things:
    """The things that are drawn, with those that can stand beside each other as choices."""

    def __init__(self, names: Sequence[str], categories: Sequence[str]) -> None:
        self.names = tuple(names)
        self._words = [frozenset(re.findall(r"[a-z]{4,}", name.lower())) for name in names]
        self._alike = {
            category: [number for number, other in enumerate(categories) if other == category]
            for category in categories
        }
        self._categories = tuple(categories)

    def ask(self, rng: random.Random, thing: int, among: int = 4) -> Question:
        """What *thing* is: the others are of its category, and no two choices share a word."""
        taken, chosen = set(self._words[thing]), [thing]
        while len(chosen) < among:
            other = rng.choice(self._alike[self._categories[thing]])
            if other not in chosen and not taken & self._words[other]:
                chosen.append(other)
                taken |= self._words[other]
        rng.shuffle(chosen)
        return Question(rng.choice(_WHAT), tuple(self.names[number] for number in chosen), chosen.index(thing))


@dataclass(frozen=True)
class FactsScene:
    """Three to five facts of one kind: *facts* are (sentence, subject, object), *questions* ask for either."""

    facts: tuple[tuple[str, str, str], ...]
    questions: tuple[tuple[str, str], ...]  # of each fact, (asks for its subject, asks for its object)

    @staticmethod
    def make(rng: random.Random, names: Sequence[str]) -> FactsScene:
        count = rng.choice((3, 4, 4, 5))
        things = rng.sample(names, count)
        kind = rng.choice(("deed", "place", "price"))
        if kind == "deed":
            others = rng.sample(_PEOPLE, count)
            (past, base) = rng.choice(_DEEDS)
            facts = [(f"{who} {past} the {thing}.", who, thing) for who, thing in zip(others, things, strict=True)]
            questions = [(f"Who {past} the {thing}?", f"What did {who} {base}?") for _, who, thing in facts]
        elif kind == "place":
            others = rng.sample(_PLACES, count)
            facts = [
                (f"The {thing} is in the {place}.", thing, place) for place, thing in zip(others, things, strict=True)
            ]
            questions = [(f"What is in the {place}?", f"Where is the {thing}?") for _, thing, place in facts]
        else:
            others = rng.sample(_AMOUNTS, count)
            facts = [
                (f"The {thing} costs {price} dollars.", thing, f"{price} dollars")
                for price, thing in zip(others, things, strict=True)
            ]
            questions = [(f"What costs {price}?", f"How much does the {thing} cost?") for _, thing, price in facts]
        return FactsScene(tuple(facts), tuple(questions))

    @property
    def context(self) -> str:
        return "Context: " + " ".join(sentence for sentence, _, _ in self.facts) + "\n"

    def ask(self, rng: random.Random) -> Question:
        number, part = rng.randrange(len(self.facts)), rng.randrange(2)
        pool = [fact[1 + part] for fact in self.facts]
        return _choose(rng, self.questions[number][part], pool[number], pool, 4)


def write_scienceqa(
    directory: Path, drawings: Drawings, *, held_out: bool, num_image: int, num_text: int, seed: int
) -> None:
    """Write ``questions.json``, ``open.json``, ``problems.json``, ``pid_splits.json`` and ``images/`` into *directory*.

    The image questions go around the drawings that are *held_out*, or around the others. ``open.json`` asks what the
    pictures show without choices.
    """
    rng = random.Random(seed)
    things = Things(drawings.names, drawings.categories)
    rows = [int(row) for row in (drawings.held_out == held_out).nonzero()[0]]
    rng.shuffle(rows)
    asked: list[tuple[str, Question, int | None]] = []
    for number in range(max(num_image, num_text)):  # in turn, so that the first ones are of both kinds
        if number < num_image:
            row = rows[number % len(rows)]
            asked.append(("", things.ask(rng, int(drawings.things[row])), row))
        if number < num_text:
            scene = FactsScene.make(rng, drawings.names)
            asked.append((scene.context, scene.ask(rng), None))
    lists: dict[str, list[dict[str, object]]] = {"questions.json": [], "open.json": []}
    problems: dict[str, dict[str, object]] = {}
    (directory / "images").mkdir(parents=True, exist_ok=True)
    for number, (context, question, picture) in enumerate(asked, 1):
        name = str(number)
        entry: dict[str, object] = {"id": name}
        text = context + question.with_options()
        if picture is not None:
            entry["image"] = f"{name}.png"
            drawings.picture(picture).save(directory / "images" / f"{name}.png")
            text = f"<image>\n{text}"
            what = f"<image>\n{WHAT}\n{WORD_INSTRUCTION}"
            if len(lists["open.json"]) < len(rows):
                lists["open.json"].append(entry | {"conversations": _turns(what, question.word)})
        lists["questions.json"].append(entry | {"conversations": _turns(text, question.letter)})
        problems[name] = {"choices": list(question.choices), "answer": question.answer}
    for file, content in (*lists.items(), ("problems.json", problems), ("pid_splits.json", {"test": list(problems)})):
        (directory / file).write_text(json.dumps(content, indent=1) + "\n")


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
