"""evaluate answers as LLaVA's own ScienceQA scripts do, unmodified, and gets the accuracy that they get."""

from __future__ import annotations

from pathlib import Path

import pytest

import s4convert
from benchmarks.mini.questions import HELD_OUT_SEED, write_scienceqa
from s4convert.mask import HeadMask
from tests.conftest import MINI_PRUNED
from tests.stock.scripts import (
    ANSWERING_SCRIPT,
    SCORING_SCRIPT,
    answering_arguments,
    read_accuracy,
    run_here,
    scoring_arguments,
    texts,
)

MASKS = {
    "scale": (MINI_PRUNED, "scale"),
    "none": (((0, 1, 2), (), (4,), (), (2, 3), (), (5,), ()), "none"),
    "broken": (tuple((0, 1, 2, 3, 4, 5) for _ in range(8)), "none"),
}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 held-out questions, half of them with an image."""
    directory = tmp_path_factory.mktemp("questions")
    write_scienceqa(directory, num_image=4, num_text=4, seed=HELD_OUT_SEED)
    return directory


@pytest.fixture(scope="module", params=["unpruned", *MASKS])
def checkpoint(request: pytest.FixtureRequest, original: Path) -> Path:
    if request.param == "unpruned":
        return original
    pruned, compensation = MASKS[request.param]
    out = original.with_name(f"llava-mini-as-{request.param}")
    s4convert.convert(original, out, HeadMask(8, pruned), compensation=compensation, check_behaviour=False, card=False)
    return out


# The scripts leave their files to the garbage collector, and give a temperature to a greedy generate.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:.do_sample. is set to .False.. However, .temperature.:UserWarning")
def test_every_answer_and_every_accuracy_is_the_scripts(
    checkpoint: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = tmp_path / "answers.jsonl"
    run_here(ANSWERING_SCRIPT, answering_arguments(checkpoint, questions, answers), monkeypatch)
    run_here(SCORING_SCRIPT, scoring_arguments(questions, answers), monkeypatch)
    wanted = read_accuracy(answers)

    evaluated = s4convert.evaluate(
        [checkpoint], questions=questions / "questions.json", images=questions / "images", max_new_tokens=1024
    )
    found = evaluated.evaluations[str(checkpoint)]
    assert evaluated.conversation == "vicuna_v1"
    assert {one.question.id: one.text for one in found.answers} == texts(answers)
    shares = [found.accuracy(image=image) for image in (None, True, False)]
    accuracies = [share.value for share in shares if share is not None]
    assert accuracies == pytest.approx([wanted.total, wanted.image, wanted.text], rel=1e-12)
