"""The questions of benchmarks/pretrained, as s4convert reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.pretrained.drawings import DRAWING_SIZE, Drawings
from benchmarks.pretrained.questions import write_scienceqa
from benchmarks.pretrained.texts import PASSAGE, split
from s4convert.study.questions import read_questions

ANIMALS = ("cat", "black cat", "polar bear", "sea lion", "goat", "water buffalo")
FOOD = ("pear", "hot pepper", "bell pepper", "salt", "waffle", "taco")


def drawings() -> Drawings:
    """Two drawings of each thing, whose colour is its number; the second of every third thing is held out."""
    names = ANIMALS + FOOD
    things = np.repeat(np.arange(len(names)), 2)
    pixels = np.full((len(things), DRAWING_SIZE, DRAWING_SIZE, 4), 255, np.uint8)
    pixels[..., 0] = np.arange(len(things))[:, None, None]
    held_out = (np.arange(len(things)) % 2 == 1) & (things % 3 == 0)
    return Drawings(pixels, things, held_out, names, ("animal",) * len(ANIMALS) + ("food",) * len(FOOD))


def test_questions_ask_about_held_out_drawings_with_choices_of_one_category_that_share_no_word(tmp_path: Path) -> None:
    drawn = drawings()
    write_scienceqa(tmp_path, drawn, held_out=True, num_image=12, num_text=20, seed=1)
    asked = read_questions(tmp_path / "questions.json", tmp_path / "images").questions
    problems = json.loads((tmp_path / "problems.json").read_text())
    assert [question.image is not None for question in asked] == [True, False] * 12 + [False] * 8
    for question in asked:
        choices, right = problems[question.id]["choices"], problems[question.id]["answer"]
        assert question.is_choice
        assert question.answers == ("ABCDE"[right],)
        assert len(choices) == len(set(choices)) == question.options
        if question.image is None:
            assert choices[right] in question.text.partition("\n")[0]
            continue
        assert set(choices) <= set(ANIMALS) or set(choices) <= set(FOOD)
        words = [word for choice in choices for word in choice.split() if len(word) > 3]
        assert len(words) == len(set(words))
        drawing = np.asarray(Image.open(question.image))[36, 36, 0]  # of this number, by its colour
        assert drawn.held_out[drawing]
        assert drawn.names[drawn.things[drawing]] == choices[right]


def test_open_questions_have_the_name_of_each_held_out_thing_once(tmp_path: Path) -> None:
    drawn = drawings()
    write_scienceqa(tmp_path, drawn, held_out=True, num_image=12, num_text=0, seed=1)
    asked = read_questions(tmp_path / "open.json", tmp_path / "images").questions
    expected = [drawn.names[thing] for thing in drawn.things[drawn.held_out]]
    assert sorted(question.answers[0] for question in asked) == sorted(expected)


def test_no_document_is_in_two_splits() -> None:
    documents = [f"Document {number} says this. " * (PASSAGE // 10) for number in range(20)]
    found = {name: {passage.split()[1] for passage in passages} for name, passages in split(documents).items()}
    assert sorted(len(numbers) for numbers in found.values()) == [4, 4, 12]
    assert len(set.union(*found.values())) == 20
