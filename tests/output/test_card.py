"""The model card of OUT: its metadata, its text, and what becomes of the card that IN has."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.output.card import BEGIN, CARD_FILES, END
from s4convert.output.heatmap import plot_heatmap
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests
from tests.support.environments import in_the_newest_environment
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = in_the_newest_environment

BASE = """---
license: other
license_name: llama3
license_link: https://example.com/licence
language:
- en
tags:
- vision
pipeline_tag: image-text-to-text
base_model: someone/older
model-index:
- name: unpruned
  results: []
arxiv: 2304.08485
---

# The base

It answers questions. Größe: 7B.
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base-7b", Spec(num_layers=2, num_kv_heads=4, hidden_size=16))


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    return path


def convert(source: Path, out: Path, mask: Path, *options: object) -> Outcome:
    return run_here(source, out, "--mask", mask, "--no-verify", *options)


def card_of(source: Path, tmp_path: Path, mask: Path, base: str | None = None) -> str:
    if base is not None:
        (source / "README.md").write_bytes(base.encode())
    outcome = convert(source, tmp_path / "out", mask)
    assert outcome.exit_code == 0, outcome.stderr
    return (tmp_path / "out" / "README.md").read_bytes().decode()


def test_the_card_tells_what_was_pruned_and_by_what_command(source: Path, tmp_path: Path, mask: Path) -> None:
    card = card_of(source, tmp_path, mask)
    assert "# base-7b, with 2 of 8 attention heads pruned" in card
    assert "$ s4convert base-7b OUT --mask mask.json --no-verify" in card
    assert str(tmp_path) not in card
    stated = json.loads((tmp_path / "out" / "s4convert.json").read_text())
    for name, entry in stated["files"].items():
        assert (entry["sha256"] in card) is name.endswith(".safetensors")
    assert stated["card"] == sorted(CARD_FILES)
    assert "![Pruned heads by layer and head](s4convert-heads.png)" in card


def test_what_decides_no_byte_is_not_in_the_card(source: Path, tmp_path: Path, mask: Path) -> None:
    outs = {"a": (), "b": ("--jobs", 3, "--force", "-q"), "c": ("--jobs=2", "-vv", "--debug", "--json")}
    for name, options in outs.items():
        assert convert(source, tmp_path / name, mask, *options).exit_code == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")


def test_the_card_begins_with_what_was_pruned_and_what_is_left(source: Path, tmp_path: Path, mask: Path) -> None:
    given = ("--model-name", "Half a llama", "--base-model", "lab/llama")
    assert convert(source, tmp_path / "out", mask, *given).exit_code == 0
    card = ModelCard((tmp_path / "out" / "README.md").read_text())
    assert (card.data.base_model, card.data.to_dict()["base_model_relation"]) == ("lab/llama", "finetune")
    title, summary = [line for line in card.text.splitlines() if line and line != BEGIN][:2]
    assert title == "# Half a llama"
    assert summary.startswith("2 of 8 attention heads of `base-7b` are pruned, in 1 of 2 layers: they are zero")
    assert summary.endswith("What is left of its answers was not measured.")
    assert "accuracy kept" not in card.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model-name", "two\nlines"), "--model-name 'two\\nlines' is no title; give some words on one line"),
        (("--base-model", "llama"), "'llama': is not the name of a repository on the Hub"),
        (("--base-model", "lab/llama", "--no-card"), "--base-model is for the model card; leave it out"),
    ],
)
def test_a_name_that_says_nothing_is_refused(
    source: Path, tmp_path: Path, mask: Path, options: tuple[str, ...], message: str
) -> None:
    assert message in convert(source, tmp_path / "out", mask, *options).error


def test_advice_data_and_the_masks_origin_stand_in_the_card(tmp_path: Path) -> None:
    mask, kept = tmp_path / "mask.json", tmp_path / "kept"
    data = ("--calibration", QUESTIONS / "questions.json", "--images", QUESTIONS)
    how = ("--metric", "energy", "--schedule", "global", "--rate", "0.25", "-o", mask, "--num-samples", "2")
    assert run_here("mask", MINI_LLAVA, *how, *data).exit_code == 0
    # The S4 scale of heads that say little is worse than nothing, which is seen on held-out samples.
    how = ("--compensate", "scale", "--save-statistics", kept)
    advised = run_here(MINI_LLAVA, tmp_path / "out", "--mask", mask, *how, *data)
    assert advised.exit_code == 0, advised.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"> \*\*Advice\.\*\* on \d+ held-out tokens, none is nearer .*; use `--compensate none`\.", card)
    digest = sha256((QUESTIONS / "questions.json").read_bytes()).hexdigest()
    assert f"| mask | `questions.json` | 2 samples | `{digest}` |" in card
    assert f"| compensation | `questions.json` | 8 samples | `{digest}` |" in card
    assert "Colour: the brighter, the more a head is worth keeping" in card
    again = run_here(MINI_LLAVA, tmp_path / "again", "--mask", mask, "--no-verify", "--statistics", kept)
    assert again.exit_code == 0, again.stderr
    assert f"| compensation | `questions.json` | 8 samples | `{digest}` |" in (tmp_path / "again/README.md").read_text()


@pytest.mark.parametrize("absent", [(), ("preprocessor_config.json", "processor_config.json"), ("tokenizer.model",)])
def test_the_cards_code_runs_on_the_files_that_are_there(
    mini_llava: Path, mini_mask_file: Path, tmp_path: Path, absent: tuple[str, ...]
) -> None:
    for name in absent:
        (mini_llava / name).unlink()
    assert convert(mini_llava, tmp_path / "out", mini_mask_file).exit_code == 0
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), re.DOTALL)
    loaded: dict[str, Any] = {}
    exec(code.replace('"OUT"', repr(str(tmp_path / "out"))), loaded)
    assert type(loaded["model"]).__name__ == "LlavaForConditionalGeneration"
    assert {"processor", "tokenizer"} & loaded.keys() == {(): {"processor"}, ("tokenizer.model",): set()}.get(
        absent, {"tokenizer"}
    )


def test_the_cards_picture_shows_the_pruned_heads(source: Path, tmp_path: Path, mask: Path) -> None:
    card_of(source, tmp_path, mask)
    plot_heatmap(tmp_path / "expected.png", 4, [(), (0, 2)], None, "pruned heads")
    assert (tmp_path / "out" / "s4convert-heads.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


def test_licence_language_and_tags_are_the_bases_but_not_its_results(source: Path, tmp_path: Path, mask: Path) -> None:
    card = ModelCard(card_of(source, tmp_path, mask, BASE))
    data = card.data.to_dict()
    assert (data["license"], data["license_name"], data["language"]) == ("other", "llama3", ["en"])
    assert data["tags"] == ["vision", "s4convert", "pruned", "attention-head-pruning"]
    assert data["arxiv"] == 2304.08485
    assert not {"model-index", "base_model"} & data.keys()  # the base is what IN is, which has no name on the Hub here
    assert card.text.rstrip().endswith("# The base\n\nIt answers questions. Größe: 7B.")


def test_a_checkpoint_in_the_hubs_cache_is_named_as_the_base_model(tmp_path: Path, mask: Path) -> None:
    snapshot = tmp_path / "models--lab--llava-mini" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    source = write_checkpoint(snapshot, Spec(num_layers=2, num_kv_heads=4, hidden_size=16))
    data = ModelCard(card_of(source, tmp_path, mask, BASE)).data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ("lab/llava-mini", "finetune")


def test_a_card_of_a_card_has_one_generated_part(source: Path, tmp_path: Path, mask: Path) -> None:
    card_of(source, tmp_path, mask, BASE)
    again = tmp_path / "again"
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"pruned_heads": {"0": [1]}}))
    outcome = convert(tmp_path / "out", again, other, "--allow-converted")
    assert outcome.exit_code == 0, outcome.stderr
    card = (again / "README.md").read_text()
    assert (card.count(BEGIN), card.count(END), card.count("# The base")) == (1, 1, 1)
    assert "# out, with 1 of 8 attention heads pruned" in card


@pytest.mark.parametrize("base", ["", "# No metadata\n", "---\n---\ntext", BASE.replace("\n", "\r\n"), "\ufeff" + BASE])
def test_a_card_of_any_base_can_be_read_again(source: Path, tmp_path: Path, mask: Path, base: str) -> None:
    card = ModelCard(card_of(source, tmp_path, mask, base))
    assert "s4convert" in card.data.tags
    assert "license: other" not in card.text


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (b"\xff\xfe", "is not UTF-8 at byte 0"),
        (b"---\n- a\n- b\n---\n", "its metadata is not a YAML mapping"),
        (b"---\na: [1\n---\n", "its metadata is not a YAML mapping"),
    ],
)
def test_a_base_card_that_cannot_be_read_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path, mask: Path, base: bytes, message: str
) -> None:
    (source / "README.md").write_bytes(base)
    refused = convert(source, tmp_path / "out", mask)
    assert refused.exit_code == 2
    assert f"README.md: {message}" in refused.error
    assert "--no-card" in refused.error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base-7b", "mask.json"]
    assert convert(source, tmp_path / "out", mask, "--no-card").exit_code == 0


def test_no_card_leaves_the_readme_as_it_is(source: Path, tmp_path: Path, mask: Path) -> None:
    (source / "README.md").write_text(BASE)
    assert convert(source, tmp_path / "out", mask, "--no-card").exit_code == 0
    assert (tmp_path / "out" / "README.md").read_text() == BASE
    assert set(digests(tmp_path / "out")) == set(digests(source)) | {"s4convert.json"}


def test_a_picture_of_the_users_own_is_not_replaced(source: Path, tmp_path: Path, mask: Path) -> None:
    (source / "s4convert-heads.png").write_bytes(b"mine")
    refused = convert(source, tmp_path / "out", mask)
    assert refused.exit_code == 2
    assert "s4convert-heads.png: stands where the model card's picture goes" in refused.error


@pytest.mark.parametrize("name", sorted(CARD_FILES))
def test_verify_notices_a_card_that_was_changed_or_removed(source: Path, tmp_path: Path, mask: Path, name: str) -> None:
    card_of(source, tmp_path, mask, BASE)
    verify = ("verify", source, tmp_path / "out")
    assert run_here(*verify).exit_code == 0
    (tmp_path / "out" / name).write_bytes(b"something else")
    assert f"{name}: is not what s4convert.json says of it" in run_here(*verify).error
    (tmp_path / "out" / name).unlink()
    assert run_here(*verify).exit_code == 1


def test_a_manifest_cannot_exempt_other_files_from_the_comparison(source: Path, tmp_path: Path, mask: Path) -> None:
    card_of(source, tmp_path, mask)
    path = tmp_path / "out" / "s4convert.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"card": ["config.json"]}))
    refused = run_here("verify", source, tmp_path / "out")
    assert refused.exit_code == 2
    assert "card is ['config.json'], not files of a model card" in refused.error


def test_the_same_inputs_give_the_same_card(source: Path, tmp_path: Path, mask: Path) -> None:
    for name in ("one", "two"):
        assert convert(source, tmp_path / name, mask, "--jobs", {"one": 1, "two": 8}[name]).exit_code == 0
    one, two = (digests(tmp_path / name) for name in ("one", "two"))
    assert {name: one[name] for name in one if name not in ("README.md", "s4convert.json")} == {
        name: two[name] for name in two if name not in ("README.md", "s4convert.json")
    }
    cards = [(tmp_path / name / "README.md").read_text() for name in ("one", "two")]
    assert cards[0].replace("--jobs 1", "--jobs 8") == cards[1]
