"""A checkpoint is asked by the prompt that it was trained with, which its files say or the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from packaging.version import Version

from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from s4convert.errors import CheckpointError, UsageError
from s4convert.model.front_end import conversation
from s4convert.study.prompts import CONVERSATIONS, prompts_of
from tests.families.fixtures import FIXTURES
from tests.support.original_layout import write_original_layout

OF_TEXTS = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
OF_PARTS = (
    "{% for m in messages %}[{{ m['role'] }}]{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def give_template(directory: Path, template: str) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def test_a_template_of_the_tokenizer_gets_texts_and_no_second_first_token(mini_llava: Path) -> None:
    give_template(mini_llava, OF_TEXTS)
    prompts = prompts_of(Checkpoint.open(mini_llava))
    assert prompts.name == "chat-template"
    assert prompts.write([("<image>\nWhat?", None)]) == "<user><image>\nWhat?<assistant>"
    assert prompts.write([("What?", "it")]) == "<user>What?<assistant>it"


@pytest.mark.skipif(Version(transformers.__version__) < Version("4.44"), reason="processors have no chat template here")
def test_a_template_of_the_processor_goes_first_and_gets_the_image_as_a_part(mini_llava: Path) -> None:
    give_template(mini_llava, OF_TEXTS)
    (mini_llava / "chat_template.jinja").write_text(OF_PARTS)
    prompts = prompts_of(Checkpoint.open(mini_llava))
    assert prompts.write([("<image>\nWhat?", None)]) == "[user]<image>What?[assistant]"
    assert prompts.write([("What?", "it")]) == "[user]What?[assistant]it"


def test_without_a_template_the_prompt_is_asked_for_and_not_guessed() -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    with pytest.raises(UsageError, match=r"has no chat template, .* `conversation` .* vicuna_v1, mistral_instruct"):
        prompts_of(checkpoint)
    with pytest.raises(UsageError, match="has no chat template"):
        prompts_of(checkpoint, "chat-template")
    with pytest.raises(UsageError, match="`conversation` 'v1' is none of vicuna_v1"):
        prompts_of(checkpoint, "v1")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_that_is_named_is_taken(mini_llava: Path, name: str) -> None:
    give_template(mini_llava, OF_TEXTS)
    prompts = prompts_of(Checkpoint.open(mini_llava), name)
    assert (prompts.name, prompts.write) == (name, CONVERSATIONS[name])


def test_the_original_layout_on_llama_gets_vicunas_prompt(tmp_path: Path) -> None:
    write_original_layout(MINI_LLAVA, tmp_path / "llava-mini", tmp_path / "tower")
    prompts = prompts_of(Checkpoint.open(tmp_path / "llava-mini"))
    assert (prompts.name, prompts.write) == ("vicuna_v1", conversation)


def test_the_original_layout_on_mistral_gets_its_prompt(tmp_path: Path) -> None:
    (mistral,) = (fixture for fixture in FIXTURES if fixture.name == "LLaVA v1.6 Mistral with tower")
    import torch

    assert prompts_of(Checkpoint.open(mistral.write(tmp_path, torch.float16))).name == "mistral_instruct"


def test_a_tokenizer_that_cannot_be_loaded_is_an_error(mini_llava: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json", "processor_config.json"):
        (mini_llava / name).unlink()
    with pytest.raises(CheckpointError, match="restore its files"):
        prompts_of(Checkpoint.open(mini_llava))
