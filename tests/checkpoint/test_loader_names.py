"""A directory of the original layout is named so that stock LLaVA, which goes by names, loads the right class."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s4convert.checkpoint.families import FAMILIES, ORIGINAL, Family
from s4convert.checkpoint.loader_names import check_loader_name, suggest_name
from s4convert.errors import UsageError
from tests.support import synthetic
from tests.support.command_line import run_here
from tests.support.disk import snapshot
from tests.support.synthetic import Spec, write_checkpoint

LLAMA, MISTRAL, QWEN = "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM"
MPT, MIXTRAL = "LlavaMptForCausalLM", "LlavaMixtralForCausalLM"
QWEN_MOE, GEMMA = "LlavaQwenMoeForCausalLM", "LlavaGemmaForCausalLM"
LORA, TEXT, ABOVE = "a LoRA adapter", "a plain language model", "whatever the directory above it is named after"
WANTED = {"llava_llama": LLAMA, "llava_mistral": MISTRAL, "llava_qwen": QWEN}

SPEC = Spec(num_kv_heads=2, heads_per_group=2, layout=synthetic.ORIGINAL)


def family(model_type: str) -> Family:
    return next(family for family in FAMILIES if family.model_type == model_type)


def loaded_as(model_type: str, name: str) -> str:
    """The class as which stock LLaVA would load an OUT of that *name*, as the refusal says; or the right one."""
    try:
        check_loader_name(family(model_type), Path("/models/llava"), Path("/models") / name)
    except UsageError as error:
        match = re.search("would load this one as (.+), not as (.+); name it ", str(error))
        assert match is not None, error
        assert match[2] == WANTED[model_type] != match[1]
        return match[1]
    return WANTED[model_type]


def test_every_family_of_the_original_layout_has_a_class() -> None:
    assert {family.model_type for family in FAMILIES if family.lineage == ORIGINAL} == set(WANTED)


@pytest.mark.parametrize("model_type", ["llava_llama", "llava_mistral"])
@pytest.mark.parametrize(
    ("name", "found"),
    [
        *(("llava", LLAMA), ("llava-v1.5-7b", LLAMA), ("llava-v1.5-7b-pruned", LLAMA), ("LLaVA-7B", LLAMA)),
        *(("my_llava", LLAMA), ("llava.v1", LLAMA), ("llava-vicuna", LLAMA), ("llava-v1.6-34b", LLAMA)),
        *(("llava-mistral", MISTRAL), ("llava-v1.6-mistral-7b-pruned", MISTRAL), ("LLAVA-MISTRAL", MISTRAL)),
        *(("llava-mpt-7b", MPT), ("llava-prompt", MPT), ("llava-empty", MPT), ("llava-attempt-2", MPT)),
        *(("llava-exempt", MPT), ("Prompted-LLaVA", MPT), ("llava-mistral-prompt", MPT), ("llava-mp", LLAMA)),
        *(("llava-lora", LORA), ("llava-LoRA-merged", LORA), ("llava-explorable", LORA), ("llava-lora-mpt", LORA)),
        *(("vicuna-7b", TEXT), ("pruned", TEXT), ("lava", TEXT), ("mistral-7b", TEXT), ("out", TEXT)),
        *(("checkpoint-500", ABOVE), ("checkpoint-llava", ABOVE), ("llava-checkpoint-500", LLAMA)),
    ],
)
def test_the_original_code_goes_by_these_rules(model_type: str, name: str, found: str) -> None:
    assert loaded_as(model_type, name) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        *(("llava-qwen", QWEN), ("llava-onevision-qwen2-7b-ov-pruned", QWEN), ("LLaVA-Qwen1.5", QWEN)),
        *(("llava-quyen", QWEN), ("llava-qwen-prompt", QWEN), ("llava-v1.6-qwen", QWEN), ("llava-gemma-qwen", QWEN)),
        *(("llava", LLAMA), ("llava-next", LLAMA), ("llava-moe", LLAMA), ("llava-v1.5-qwen", LLAMA)),
        *(("llava-llama3-qwen", LLAMA), ("llava-qwen-trying", LLAMA), ("llava-v1.6-34b-qwen", LLAMA)),
        *(("llava-nous-hermes-qwen", LLAMA), ("llava-wizardlm-2-qwen", QWEN), ("llava-qwen-vicuna", QWEN)),
        *(("llava-wizardlm-2-vicuna-qwen", LLAMA), ("llava-mistral-qwen", MISTRAL), ("llava-zephyr-qwen", MISTRAL)),
        *(("llava-mixtral-qwen", MIXTRAL), ("llava-qwen-moe", QWEN_MOE), ("llava-quyen-moe", QWEN_MOE)),
        *(("llava-gemma", GEMMA), ("llava-qwen-lora", LORA), ("qwen2-7b", TEXT), ("checkpoint-9-llava-qwen", ABOVE)),
    ],
)
def test_the_code_of_llava_next_goes_by_these_rules(name: str, found: str) -> None:
    assert loaded_as("llava_qwen", name) == found


@pytest.mark.parametrize(
    ("model_type", "source", "suggestion"),
    [
        ("llava_llama", "/models/llava-v1.5-7b", "llava-v1.5-7b-pruned"),
        ("llava_llama", "/models/mine", "llava-mine-pruned"),
        ("llava_llama", "/models/llava-prompt", "llava-pruned"),
        ("llava_llama", "/models/llava-v1.5/checkpoint-500", "llava-v1.5-checkpoint-500-pruned"),
        ("llava_llama", "/models/checkpoint-1/checkpoint-500", "llava-checkpoint-1-checkpoint-500-pruned"),
        ("llava_llama", "/", "llava--pruned"),
        ("llava_mistral", "/models/llava-v1.6-mistral-7b", "llava-v1.6-mistral-7b-pruned"),
        ("llava_mistral", "/models/llava-v1.6", "llava-mistral-llava-v1.6-pruned"),
        ("llava_qwen", "/models/llava-onevision-qwen2-7b-ov", "llava-onevision-qwen2-7b-ov-pruned"),
        ("llava_qwen", "/models/llava-yi", "llava-qwen-pruned"),
    ],
)
def test_a_name_that_loads_is_suggested(model_type: str, source: str, suggestion: str) -> None:
    assert suggest_name(family(model_type), Path(source)) == suggestion
    with pytest.raises(UsageError, match=f"name it {re.escape(suggestion)}, or insist with `allow_name=True`"):
        check_loader_name(family(model_type), Path(source), Path("out"))


FRAGMENTS = (
    "llava",
    "LoRA",
    "mpt",
    "prompt",
    "mistral",
    "mixtral",
    "checkpoint-",
    "yi",
    "qwen",
    "moe",
    "llama",
    "-",
    "_",
)
names = st.lists(
    st.sampled_from(FRAGMENTS)
    | st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=4),
    max_size=6,
).map("".join)


@given(st.sampled_from(sorted(WANTED)), names, names)
def test_whatever_in_is_called_the_suggestion_loads_as_its_class(model_type: str, above: str, name: str) -> None:
    suggestion = suggest_name(family(model_type), Path("/models", above, name))
    assert suggestion.endswith("-pruned")
    assert "/" not in suggestion
    assert loaded_as(model_type, suggestion) == WANTED[model_type]


@pytest.mark.parametrize("model_type", [family.model_type for family in FAMILIES if family.lineage != ORIGINAL])
def test_who_loads_the_other_layouts_goes_by_their_configs(model_type: str) -> None:
    for name in ("out", "prompt", "lora", "checkpoint-1"):
        check_loader_name(family(model_type), Path("in"), Path(name))


def test_the_name_that_counts_is_that_of_the_directory_itself(tmp_path: Path) -> None:
    check_loader_name(family("llava_llama"), Path("in"), tmp_path / "prompts" / "llava")
    with pytest.raises(UsageError, match="would load this one as"):
        check_loader_name(family("llava_llama"), Path("in"), tmp_path / "llava" / "out")


# --- through the command line ---------------------------------------------------------------------------------


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [2]}}))
    return path


def test_an_out_that_loads_as_another_class_is_refused_and_the_suggestion_accepted(tmp_path: Path, mask: Path) -> None:
    source = write_checkpoint(tmp_path / "llava-v1.5", SPEC)
    before = snapshot(tmp_path)
    outcome = run_here(source, tmp_path / "prompt", "--mask", mask, "--no-verify")
    assert outcome.exit_code == 2
    assert outcome.error == (
        f"{tmp_path / 'prompt'}: stock LLaVA goes by a directory's name and would load this one as a plain language "
        "model, not as LlavaLlamaForCausalLM; name it llava-v1.5-pruned, or insist with --allow-name"
    )
    assert snapshot(tmp_path) == before
    assert run_here(source, tmp_path / "llava-v1.5-pruned", "--mask", mask, "--no-verify").exit_code == 0


def test_a_name_can_be_insisted_on(tmp_path: Path, mask: Path) -> None:
    source = write_checkpoint(tmp_path / "in", SPEC)
    assert run_here(source, tmp_path / "out", "--mask", mask, "--no-verify", "--allow-name").exit_code == 0


def test_a_plain_language_model_may_have_any_name(tmp_path: Path, mask: Path) -> None:
    source = write_checkpoint(tmp_path / "in", replace(SPEC, text_model="llama"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert run_here(source, tmp_path / "prompt", "--mask", mask, "--no-verify").exit_code == 0
