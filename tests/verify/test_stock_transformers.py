"""Stock transformers loads what a conversion writes, and computes with it what run-time hooks would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

import s4convert
from s4convert.mask import HeadMask
from s4convert.model.front_end import load_processor
from s4convert.output.card import CARD_FILES
from tests.support.run_time_hooks import hook_heads

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


def load(path: Path) -> LlavaForConditionalGeneration:
    return LlavaForConditionalGeneration.from_pretrained(path).float().eval()


def hidden_states(model: LlavaForConditionalGeneration, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.inference_mode():
        states: tuple[torch.Tensor, ...] = model(**inputs, output_hidden_states=True).hidden_states
    return states


def prompts(path: Path) -> list[dict[str, torch.Tensor]]:
    from PIL import Image

    processor = load_processor(path)
    image = Image.effect_noise((56, 56), 80).convert("RGB")
    return [
        dict(processor(text="USER: How many shapes are there? ASSISTANT:", return_tensors="pt")),
        dict(processor(text="USER: <image>\nWhich shape is red? ASSISTANT:", images=image, return_tensors="pt")),
    ]


@pytest.mark.parametrize("single_file", [False, True], ids=["sharded", "single file"])
def test_loads_with_every_key_in_its_place_and_generates(
    mini_llava_as: Callable[..., Path], mini_mask: HeadMask, tmp_path: Path, single_file: bool
) -> None:
    source = mini_llava_as(torch.float16, single_file=single_file)
    out = tmp_path / "out"
    s4convert.convert(source, out, mini_mask, check_behaviour=False)
    model, loading = LlavaForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert {name: list(keys) for name, keys in loading.items() if keys} == {}
    inputs = prompts(out)[1]
    answer = model.float().generate(**inputs, do_sample=False, max_new_tokens=3)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_heads_and_sidecars_are_the_inputs(mini_llava: Path, mini_mask: HeadMask, tmp_path: Path) -> None:
    out = tmp_path / "out"
    s4convert.convert(mini_llava, out, mini_mask, check_behaviour=False)
    sidecars = {path.name for path in mini_llava.iterdir() if path.suffix != ".safetensors"}
    assert len(sidecars) == 8
    for name in sidecars:
        assert (out / name).read_bytes() == (mini_llava / name).read_bytes()
    assert {path.name for path in out.iterdir()} - {path.name for path in mini_llava.iterdir()} == {
        "s4convert.json",
        *CARD_FILES,
    }
    before, after = (load(path).config.text_config for path in (mini_llava, out))
    assert (after.num_attention_heads, after.num_key_value_heads) == (8, 8)
    assert after.to_dict() == before.to_dict()


@pytest.mark.parametrize(
    ("dtype", "compensation"), [(torch.float32, "scale"), (torch.float16, "none"), (torch.bfloat16, "scale")], ids=str
)
def test_hidden_states_equal_those_of_the_hooked_original(
    mini_llava_as: Callable[..., Path], mini_mask: HeadMask, tmp_path: Path, dtype: torch.dtype, compensation: str
) -> None:
    source, out = mini_llava_as(dtype), tmp_path / "out"
    s4convert.convert(source, out, mini_mask, compensation=compensation, check_behaviour=False)
    original, reference, converted = load(source), load(source), load(out)
    hook_heads(reference, mini_mask, scaled=compensation == "scale")
    first_touched = mini_mask.touched_layers[0]
    for inputs in prompts(source):
        runs = zip(*(hidden_states(model, **inputs) for model in (original, reference, converted)), strict=True)
        for index, (before, wanted, found) in enumerate(runs):
            if index <= first_touched:  # [0] are the embeddings, so [i] is what layer i reads
                assert torch.equal(found, before)
            else:
                assert not torch.equal(found, before)
                assert (found - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()
