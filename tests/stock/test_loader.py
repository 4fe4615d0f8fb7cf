"""LLaVA's own loader loads what a conversion writes, and computes with it what run-time hooks would."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from llava.constants import IMAGE_TOKEN_INDEX
from llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model
from PIL import Image
from safetensors.torch import load_file

from benchmarks.mini.questions import IMAGE_SIZE
from s4convert.mask import HeadMask
from tests.support.run_time_hooks import decoder_layers, hook_heads

# The relative norm of the difference, computed in float32. `none` only writes zeros, `scale` rounds to fp16 once.
TOLERANCE = {"none": 1e-5, "scale": 2.0**-10}
NOTICED = 20 * TOLERANCE["scale"]

TEXT = "USER: The box has two. The cup has nine. Which has nine? ASSISTANT:"
IMAGE = "USER: <image>\nWhich shape is red? ASSISTANT:"


@dataclass(frozen=True)
class Loaded:
    """What LLaVA's loader returns, as far as it is needed here."""

    tokenizer: Any
    model: Any
    image_processor: Any

    def logits(self, text: str) -> torch.Tensor:
        """Of every position of *text*, in which ``<image>`` stands for a picture."""
        ids = tokenizer_image_token(text, self.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt").unsqueeze(0)
        inputs: dict[str, Any] = {}
        if "<image>" in text:
            picture = Image.linear_gradient("L").resize((IMAGE_SIZE, IMAGE_SIZE)).convert("RGB")
            images = process_images([picture], self.image_processor, self.model.config)
            inputs = {"images": images.to(self.model.dtype), "image_sizes": [picture.size]}
        with torch.inference_mode():
            logits: torch.Tensor = self.model(ids, **inputs).logits
        return logits


def load(path: Path) -> Loaded:
    """Load *path* as LLaVA's scripts do, but on the CPU."""
    tokenizer, model, image_processor, _ = load_pretrained_model(
        str(path), None, get_model_name_from_path(str(path)), device="cpu"
    )
    return Loaded(tokenizer, model, image_processor)


@functools.cache
def load_float32(path: Path) -> Loaded:
    """*path*, loaded once, computing in float32, so that the only rounding is that of the stored weights."""
    loaded = load(path)
    loaded.model.float()
    return loaded


def hooked(path: Path, mask: HeadMask, compensation: str) -> Loaded:
    loaded = copy.deepcopy(load_float32(path))
    hook_heads(loaded.model, mask, scaled=compensation == "scale")
    return loaded


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_every_stored_tensor_is_in_the_model_and_no_other(original: Path, converted: Path) -> None:
    stored = {name: tensor for shard in converted.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    tower = load_file(original.with_name("tower") / "model.safetensors")
    prefix = "model.vision_tower.vision_tower."
    wanted = stored | {prefix + name: tensor for name, tensor in tower.items()}
    loaded = load(converted).model.state_dict()
    assert loaded.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(loaded[name], tensor), name


def test_class_and_head_counts_are_the_originals(original: Path, converted: Path) -> None:
    before, after = load(original).model, load(converted).model
    assert type(before).__name__ == type(after).__name__ == "LlavaLlamaForCausalLM"
    assert (after.config.num_attention_heads, after.config.num_key_value_heads) == (8, 8)
    paths = {"_name_or_path": ""}
    assert after.config.to_dict() | paths == before.config.to_dict() | paths
    for one, other in zip(decoder_layers(before), decoder_layers(after), strict=True):
        assert (other.self_attn.num_heads, other.self_attn.num_key_value_heads) == (8, 8)
        assert one.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("text", [TEXT, IMAGE], ids=["text", "image"])
def test_logits_equal_those_of_the_hooked_original(
    original: Path, converted: Path, mini_mask: HeadMask, compensation: str, text: str
) -> None:
    wanted = hooked(original, mini_mask, compensation).logits(text)
    assert distance(load_float32(converted).logits(text), wanted) <= TOLERANCE[compensation]


@pytest.mark.parametrize("text", [TEXT, IMAGE], ids=["text", "image"])
def test_lost_hooks_are_noticed(
    original: Path, converted: Path, mini_mask: HeadMask, compensation: str, text: str
) -> None:
    """What befalls an evaluation script: it loads the original again, and the hooks stay with the other model."""
    wanted = hooked(original, mini_mask, compensation).logits(text)
    assert distance(load_float32(original).logits(text), wanted) > NOTICED
    assert distance(load_float32(original).logits(text), load_float32(converted).logits(text)) > NOTICED


def test_another_compensation_and_one_head_less_are_noticed(
    original: Path, converted: Path, mini_mask: HeadMask, compensation: str
) -> None:
    found = load_float32(converted).logits(TEXT)
    other = "none" if compensation == "scale" else "scale"
    assert distance(hooked(original, mini_mask, other).logits(TEXT), found) > NOTICED
    for layer in mini_mask.touched_layers:
        pruned = list(mini_mask.pruned)
        pruned[layer] = pruned[layer][1:]
        one_less = HeadMask(mini_mask.num_heads, tuple(pruned))
        assert distance(hooked(original, one_less, compensation).logits(TEXT), found) > NOTICED, layer
