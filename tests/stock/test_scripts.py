"""LLaVA's own evaluation scripts, unmodified, get from a conversion the answers that run-time hooks would give."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import llava.model.builder
import llava.utils
import pytest
import torch

from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from s4convert.mask import HeadMask
from tests.stock.scripts import ANSWERING_SCRIPT, answering_arguments, ask, score, texts
from tests.support.run_time_hooks import hook_heads


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 held-out questions, half of them with an image."""
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=6, num_text=6, seed=HELD_OUT_SEED)
    return directory


@pytest.fixture(scope="module")
def answers_of_the_original(original: Path, questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    answers = tmp_path_factory.mktemp("answers") / "original.jsonl"
    ask(original, questions, answers)
    return answers


def ask_with_hooks(
    checkpoint: Path, questions: Path, answers: Path, mask: HeadMask, *, scaled: bool, patch: pytest.MonkeyPatch
) -> None:
    """Run the answering script in this process, where its loader can be made to hook the model that it returns."""
    load = llava.model.builder.load_pretrained_model

    def load_and_hook(*arguments: Any) -> Any:
        tokenizer, model, *others = load(*arguments, device="cpu")
        hook_heads(model, mask, scaled=scaled)
        return tokenizer, model, *others

    patch.setattr(llava.model.builder, "load_pretrained_model", load_and_hook)
    patch.setattr(llava.utils, "disable_torch_init", lambda: None)  # it changes torch for the tests that follow
    patch.setattr(torch.Tensor, "cuda", lambda tensor: tensor)
    patch.setattr(sys, "argv", [ANSWERING_SCRIPT, *answering_arguments(checkpoint, questions, answers)])
    runpy.run_module(ANSWERING_SCRIPT, run_name="__main__", alter_sys=True)


def test_the_original_answers_right(questions: Path, answers_of_the_original: Path) -> None:
    accuracy = score(questions, answers_of_the_original)
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
    ask_with_hooks(original, questions, hooked, mini_mask, scaled=compensation == "scale", patch=monkeypatch)
    ask(converted, questions, found)
    assert texts(found) == texts(hooked)
    assert texts(found) != texts(answers_of_the_original)
