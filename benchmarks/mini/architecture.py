"""What the mini LLaVA looks like on disk: its configuration, its sidecars and the names of its tensors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.mini.questions import IMAGE_SIZE
from benchmarks.mini.tokenizer import VOCAB_SIZE

NUM_LAYERS = 8
IMAGE_TOKEN = VOCAB_SIZE
PAD_TOKEN = VOCAB_SIZE + 1
BOS_TOKEN, EOS_TOKEN = 1, 2
PATCH_SIZE = 14
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2

CONFIG: dict[str, Any] = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "ignore_index": -100,
    "image_token_index": IMAGE_TOKEN,
    "image_seq_length": NUM_IMAGE_TOKENS,
    "pad_token_id": PAD_TOKEN,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "text_config": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE + 2,
        "hidden_size": 128,
        "intermediate_size": 344,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": BOS_TOKEN,
        "eos_token_id": EOS_TOKEN,
        "pad_token_id": PAD_TOKEN,
        "torch_dtype": "float16",
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "projection_dim": 64,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "torch_dtype": "float16",
    },
}

_ADDED_TOKENS = {0: "<unk>", BOS_TOKEN: "<s>", EOS_TOKEN: "</s>", IMAGE_TOKEN: "<image>", PAD_TOKEN: "<pad>"}

SIDECARS: dict[str, dict[str, Any]] = {
    "config.json": CONFIG,
    "generation_config.json": {
        "bos_token_id": BOS_TOKEN,
        "eos_token_id": EOS_TOKEN,
        "pad_token_id": PAD_TOKEN,
    },
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
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    },
    "processor_config.json": {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": PATCH_SIZE,
        "vision_feature_select_strategy": "default",
    },
    "special_tokens_map.json": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
    },
    "tokenizer_config.json": {
        "tokenizer_class": "LlamaTokenizer",
        "processor_class": "LlavaProcessor",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "added_tokens_decoder": {
            str(index): {
                "content": content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for index, content in _ADDED_TOKENS.items()
        },
        "clean_up_tokenization_spaces": False,
        "legacy": True,
        "model_max_length": 2048,
        "padding_side": "left",
        "sp_model_kwargs": {},
    },
}


def universal_name(name: str) -> str:
    """The name that every transformers version loads, for a tensor of a newest-version state dict."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        return name.replace("language_model.", "language_model.model.", 1)
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def write_checkpoint(directory: Path, weights: dict[str, torch.Tensor], tokenizer_model: Path) -> None:
    """Write *weights* (names of a newest-version ``LlavaForConditionalGeneration``) as two fp16 shards."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in SIDECARS.items():
        (directory / name).write_text(json.dumps(content, indent=2) + "\n")
    if tokenizer_model != directory / "tokenizer.model":
        shutil.copyfile(tokenizer_model, directory / "tokenizer.model")
    shards: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
    late = tuple(f"language_model.model.layers.{i}." for i in range(NUM_LAYERS // 2, NUM_LAYERS))
    for name, tensor in weights.items():
        name = universal_name(name)
        second = name.startswith((*late, "language_model.model.norm.", "language_model.lm_head."))
        shards[second][name] = tensor.to(torch.float16).contiguous().cpu()
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, directory / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard.values())},
        "weight_map": {name: file for file, shard in zip(files, shards, strict=True) for name in sorted(shard)},
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
