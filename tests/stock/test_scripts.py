"""LLaVA's own evaluation scripts, unmodified, get from a conversion the answers that run-time hooks would give."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from s4convert.mask import HeadMask
from tests.stock.scripts import ANSWERING_SCRIPT, answering_arguments, ask, run_here, score, texts
from tests.support.run_time_hooks import hook_heads
from tests.support.warm_python import warm


@pytest.fixture(scope="package")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 held-out questions, half of them with an image."""
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=6, num_text=6, seed=HELD_OUT_SEED)
    return directory


@pytest.fixture(scope="package")
def answers_of_the_original(original: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    answers = tmp_path_factory.mktemp("answers") / "original.jsonl"
    ask(original, questions, answers, warm("python"))
    return answers


def test_the_original_answers_right(questions: Path, answers_of_the_original: Path) -> None:
    accuracy = score(questions, answers_of_the_original, warm("python"))
    assert (accuracy.total, accuracy.image, accuracy.text) == (1, 1, 1)


# Word for word, though both compute in fp16: no answer is as close as the two models' rounding, by a factor of 20.
# The script leaves its files to the garbage collector, and gives a temperature to a greedy generate.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.do_sample. is set to .False.. However, .temperature.:UserWarning")
def test_the_converted_says_what_the_hooked_original_says(
    original: Path,
    converted: Path,
    compensation: str,
    mini_mask: HeadMask,
    questions: Path,
    answers_of_the_original: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hooked, found = tmp_path / "hooked.jsonl", tmp_path / "converted.jsonl"
    run_here(
        ANSWERING_SCRIPT,
        answering_arguments(original, questions, hooked),
        monkeypatch,
        lambda model: hook_heads(model, mini_mask, scaled=compensation == "scale"),
    )
    ask(converted, questions, found, warm("python"))
    assert texts(found) == texts(hooked)
    assert texts(found) != texts(answers_of_the_original)
