"""The mini LLaVA that ships with the package: small, trained, and really looking at its images."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

import s4convert
from benchmarks.mini.accuracy import accuracy
from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from benchmarks.mini.scienceqa import heads_for, weakest_of_the_model
from s4convert.checkpoint import Checkpoint
from s4convert.mask import HeadMask
from tests.conftest import MINI_LLAVA
from tests.support.original_layout import write_original_layout

# The same questions in every run. ``python -m benchmarks.mini.accuracy`` asks ten times as many.
NUM_QUESTIONS = 20


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 held-out questions, half of them with an image."""
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=NUM_QUESTIONS, num_text=NUM_QUESTIONS, seed=HELD_OUT_SEED)
    return directory


def test_it_is_small_and_sharded() -> None:
    files = [path for path in MINI_LLAVA.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    assert sum(path.suffix == ".safetensors" for path in files) >= 2


def test_it_answers_held_out_questions(questions: Path) -> None:
    counts = accuracy(MINI_LLAVA, questions)
    assert counts["image"][1] == counts["text"][1] == NUM_QUESTIONS
    assert counts["image"][0] >= 0.95 * NUM_QUESTIONS
    assert counts["text"][0] >= 0.95 * NUM_QUESTIONS


def test_it_is_lost_without_the_image(questions: Path) -> None:
    right, asked = accuracy(MINI_LLAVA, questions, blank=True)["image"]
    assert asked == NUM_QUESTIONS
    assert right <= 0.45 * asked


@pytest.mark.parametrize("num_shards", [1, 3])
def test_its_original_layout_converts_to_the_same_edits(tmp_path: Path, mini_mask: HeadMask, num_shards: int) -> None:
    source = tmp_path / "llava-mini"
    write_original_layout(MINI_LLAVA, source, tmp_path / "tower", num_shards=num_shards)
    report = s4convert.convert(source, tmp_path / "llava-mini-pruned", mini_mask)
    assert report.behaviour is not None
    assert report.behaviour.probe == "3 text prompts, 2 image prompts"

    s4convert.convert(MINI_LLAVA, tmp_path / "mini", mini_mask, check_behaviour=False)
    original, hugging_face = (Checkpoint.open(tmp_path / name) for name in ("llava-mini-pruned", "mini"))
    for layer in range(8):
        for projection in "qkvo":
            one, other = (c.projection(layer, projection, "weight") for c in (original, hugging_face))
            assert one is not None and other is not None
            assert (original.read_rows(one.tensor) == hugging_face.read_rows(other.tensor)).all()


def test_the_benchmarks_budget_is_spread_evenly_over_the_layers() -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    counts = [heads_for(percentage, 64) for percentage in (10, 20, 30)]
    assert counts == [6, 13, 19]
    masks = [weakest_of_the_model(checkpoint, count) for count in counts]
    assert [mask.num_pruned for mask in masks] == counts
    for mask in masks:
        sizes = [len(heads) for heads in mask.pruned]
        assert max(sizes) - min(sizes) == 1
    for fewer, more in pairwise(masks):
        assert all(set(few) <= set(many) for few, many in zip(fewer.pruned, more.pruned, strict=True))
    assert (
        weakest_of_the_model(checkpoint, 16).pruned
        == s4convert.make_mask(MINI_LLAVA, metric="magnitude", schedule="uniform", rate=0.25).mask.pruned
    )
