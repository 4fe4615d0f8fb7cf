"""What the pretrained LLaVA looks like on disk: its configuration, its sidecars and the names of its tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.pretrained.drawings import IMAGE_SIZE
from benchmarks.pretrained.language_model import BEGIN, END, IMAGE, PAD, UNKNOWN, Gguf, tokenizer_json

PATCH_SIZE = 12
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
VISION_CONFIG: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "projection_dim": 256,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-05,
}
VISION_FEATURE_LAYER = -1

# LLaVA's ``chatml_direct``, which is nearly what SmolLM2 was trained with.
_TEMPLATE = (
    "<|im_start|>system\nAnswer the questions.<|im_end|>"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sidecars(language_model: Gguf) -> dict[str, str]:
    """File name -> content of every file that is not weights."""
    text_config = language_model.config() | {"torch_dtype": "float16"}
    image_id, pad_id = language_model.vocabulary, language_model.vocabulary + 1
    special = {"bos_token": UNKNOWN, "eos_token": END, "unk_token": UNKNOWN, "pad_token": PAD}
    ids = {name: text_config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files: dict[str, dict[str, Any]] = {
        "config.json": {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "ignore_index": -100,
            "image_token_index": image_id,
            "image_seq_length": NUM_IMAGE_TOKENS,
            "pad_token_id": pad_id,
            "projector_hidden_act": "gelu",
            "vision_feature_layer": VISION_FEATURE_LAYER,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
            "torch_dtype": "float16",
            "text_config": text_config,
            "vision_config": VISION_CONFIG | {"torch_dtype": "float16"},
        },
        "generation_config.json": ids,
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "feature_extractor_type": "CLIPFeatureExtractor",
            "processor_class": "LlavaProcessor",
            "do_resize": True,
            "size": {"shortest_edge": IMAGE_SIZE},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
            "do_convert_rgb": True,
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE,
            "num_additional_image_tokens": 1,
            "patch_size": PATCH_SIZE,
            "vision_feature_select_strategy": "default",
        },
        "special_tokens_map.json": special,
        "tokenizer_config.json": special
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "processor_class": "LlavaProcessor",
            "add_bos_token": False,
            "add_eos_token": False,
            "additional_special_tokens": [BEGIN, IMAGE],
            "chat_template": _TEMPLATE,
            "clean_up_tokenization_spaces": False,
            "model_max_length": text_config["max_position_embeddings"],
            "padding_side": "left",
        },
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in files.items()} | {
        "tokenizer.json": tokenizer_json(language_model.tokenizer())
    }


def tower_name(name: str) -> str:
    """The name on disk of a tensor of any version's ``CLIPVisionModel``."""
    return f"vision_tower.vision_model.{name.removeprefix('vision_model.')}"


def write_checkpoint(directory: Path, language_model: Gguf, weights: Mapping[str, torch.Tensor]) -> None:
    """Write *weights* (names on disk) in float16, a shard a part, with all sidecars of *language_model*."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in sidecars(language_model).items():
        (directory / name).write_text(content)
    parts = {name: not name.startswith("language_model.model.layers.") for name in weights}
    files, total = {}, 0
    for number, of_layers in enumerate((True, False), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        shard = {
            name: tensor.to(torch.float16).contiguous().clone()
            for name, tensor in weights.items()
            if parts[name] != of_layers
        }
        for name, tensor in shard.items():
            if not tensor.isfinite().all():
                raise SystemExit(f"{name} is not finite in float16")
        save_file(shard, directory / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(sorted(shard), file))
        total += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
