"""Questions go to checkpoints, figures come out, and what cannot be asked is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import s4convert
from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.errors import CalibrationError, StorageError, UsageError
from s4convert.mask import HeadMask
from tests.conftest import MINI_PRUNED
from tests.support.command_line import run_here

ASKED: dict[str, Any] = {
    "questions": QUESTIONS / "questions.json",
    "images": QUESTIONS,
    "conversation": "vicuna_v1",
}
FLAGS = ("--questions", QUESTIONS / "questions.json", "--images", QUESTIONS, "--conversation", "vicuna_v1")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The mini LLaVA and a conversion beside it, for reading only."""
    original = tmp_path_factory.mktemp("pair") / "mini-llava"
    shutil.copytree(MINI_LLAVA, original)
    converted = original.with_name("mini-llava-pruned")
    mask = HeadMask(8, MINI_PRUNED)
    s4convert.convert(original, converted, mask, compensation="none", check_behaviour=False, card=False)
    return original, converted


def test_a_conversion_is_compared_with_its_original_where_that_stands_beside_it(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    original, converted = pair
    samples = tmp_path / "samples.jsonl"
    said = run_here("evaluate", converted, *FLAGS, "--samples", samples)
    assert (said.exit_code, said.stderr) == (0, "")
    assert f"{converted}, against {original}:\n  accuracy  " in said.stdout
    assert re.search(
        r"  speed     \d+\.\d\d times \(\d+\.\d\d to \d+\.\d\d\); zeroed heads keep their shapes", said.stdout
    )
    assert "prompt (vicuna_v1):\n  A chat between" in said.stdout
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["checkpoint"] for line in lines] == [str(original)] * 8 + [str(converted)] * 8
    assert {line["fingerprint"] for line in lines[:8]} == {Checkpoint.open(original).fingerprint}
    assert {line["fingerprint"] for line in lines[8:]} == {Checkpoint.open(converted).fingerprint}
    assert all(line["score"] == (line["choice"] == line["answers"][0]) for line in lines)
    assert sum(line["score"] for line in lines[:8]) == 8
    compared = s4convert.compare(write_part(lines[:8], tmp_path / "a"), write_part(lines[8:], tmp_path / "b"))
    assert f"accuracy  {compared.difference()}" in said.stdout


def write_part(lines: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_another_model_beside_it_is_not_its_original(pair: tuple[Path, Path], tmp_path: Path) -> None:
    converted = Path(shutil.copytree(pair[1], tmp_path / "mini-llava-pruned"))
    shutil.copytree(pair[1], tmp_path / "mini-llava")
    said = run_here("evaluate", converted, *FLAGS, "--num-samples", 1, "--json")
    assert "is another model than" in said.stderr
    content = json.loads(said.stdout)
    assert list(content["checkpoints"]) == [str(converted)]
    assert content["checkpoints"][str(converted)]["accuracy"]["count"] == 1


def test_batches_and_the_order_of_questions_change_no_answer(pair: tuple[Path, Path]) -> None:
    found = [
        s4convert.evaluate([pair[0]], **ASKED, batch_size=size).evaluations[str(pair[0])].answers for size in (1, 3)
    ]
    assert [one.question.id for one in found[0]] == [str(n) for n in range(1, 9)]
    assert [one.text for one in found[0]] == [one.text for one in found[1]]
    assert [one.loss for one in found[0]] == pytest.approx([one.loss for one in found[1]], abs=1e-4)


def test_cut_and_unparsable_answers_are_counted_and_shown(pair: tuple[Path, Path]) -> None:
    evaluated = s4convert.evaluate([pair[0]], **ASKED | {"conversation": "chatml_direct"}, max_new_tokens=1)
    (found,) = evaluated.evaluations.values()
    text, cut, unparsable = evaluated.to_text(), sum(one.cut for one in found.answers), len(found.unparsable)
    assert min(cut, unparsable) >= 4
    assert f"cut       {cut} of 8 answers at the largest number of new tokens" in text
    assert f"unparsable {unparsable} of 8 answers, counted as wrong: '{found.unparsable[0].text}', " in text
    assert (found.to_json()["cut"], found.to_json()["unparsable"]) == (cut, unparsable)
    assert {(one.choice, one.score) for one in found.unparsable} == {(None, 0.0)}


def test_the_perplexity_of_a_text_is_stock_codes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    from s4convert.model.front_end import load_processor

    texts = ["The box has two. The cup has nine.", "Which has nine? The cup."]
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    evaluated = s4convert.evaluate(pair, text=tmp_path / "text.txt")
    stock, tokenizer = LlavaForConditionalGeneration.from_pretrained(pair[0]), load_processor(pair[0]).tokenizer
    stock.float().eval()
    loss, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = stock(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        loss += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    found, pruned = evaluated.evaluations.values()
    assert found.text_tokens == pruned.text_tokens == count
    assert found.text_perplexity == pytest.approx(math.exp(loss / count), rel=1e-4)
    assert (evaluated.prompt, found.answers, found.speed) == ("", (), None)
    assert f"perplexity of the text {found.text_perplexity:.4g}, {count} tokens" in evaluated.to_text()
    assert found.text_perplexity is not None and pruned.text_perplexity is not None
    times = pruned.text_perplexity / found.text_perplexity
    assert f"against {pair[0]}:\n  text      {times:.4g} times the perplexity" in evaluated.to_text()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({}, UsageError, "give `questions` to ask, or a `text` to read"),
        (ASKED | {"conversation": None}, UsageError, "has no chat template"),
        (ASKED | {"images": None}, UsageError, "`images`"),
        (ASKED | {"batch_size": 0}, UsageError, "`batch_size` 0"),
        (ASKED | {"max_new_tokens": 0}, UsageError, "`max_new_tokens` 0"),
        (ASKED | {"device": "abacus"}, UsageError, "abacus"),
        (ASKED | {"dtype": "int8"}, UsageError, "`dtype` 'int8'"),
        (ASKED | {"samples": MINI_LLAVA / "config.json"}, UsageError, "exists; .* `force=True`"),
        (ASKED | {"samples": MINI_LLAVA / "none" / "samples"}, StorageError, "no such directory"),
        (ASKED | {"questions": MINI_LLAVA / "config.json"}, CalibrationError, r"config\.json"),
        ({"text": MINI_LLAVA / "none"}, StorageError, "none"),
    ],
)
def test_what_cannot_be_asked_is_refused(settings: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        s4convert.evaluate([MINI_LLAVA], **settings)


def test_no_checkpoint_and_one_given_twice_are_refused(pair: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        s4convert.evaluate([], **ASKED)
    with pytest.raises(UsageError, match="is given twice"):
        s4convert.evaluate([pair[0], pair[0]], **ASKED)
