"""The mini LLaVA in the layout of the original LLaVA code (``llava_llama``), as v1.5 checkpoints are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from s4convert.checkpoint import read_json_object

if TYPE_CHECKING:
    import torch

_LAYOUT = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "multi_modal_projector.linear_1.": "model.mm_projector.0.",
    "multi_modal_projector.linear_2.": "model.mm_projector.2.",
}
_TOWER_PREFIX = "vision_tower."
_VOCABULARY_TENSORS = ("model.embed_tokens.weight", "lm_head.weight")


def write_original_layout(source: Path, directory: Path, tower: Path, *, num_shards: int = 1) -> None:
    """Write the mini LLaVA in *source* to *directory* in the original layout, its CLIP tower to *tower*.

    The tower is no part of such a checkpoint: ``mm_vision_tower`` in the config names its directory. The
    original code has no image and padding token, so their embeddings are left out.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = read_json_object(source / "config.json")
    text_config, vision_config = config["text_config"], config["vision_config"]
    vocabulary = config["image_token_index"]  # the first of the tokens that only the Hugging Face layout has
    weights: dict[str, torch.Tensor] = {}
    tower_weights: dict[str, torch.Tensor] = {}
    for shard in sorted(source.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                tensor = file.get_tensor(name)
                if name.startswith(_TOWER_PREFIX):
                    tower_weights[name.removeprefix(_TOWER_PREFIX)] = tensor
                    continue
                prefix = next(prefix for prefix in _LAYOUT if name.startswith(prefix))
                name = _LAYOUT[prefix] + name.removeprefix(prefix)
                weights[name] = tensor[:vocabulary].clone() if name in _VOCABULARY_TENSORS else tensor

    directory.mkdir(parents=True)
    tower.mkdir(parents=True)
    save_file(tower_weights, tower / "model.safetensors", metadata={"format": "pt"})
    _write_json(tower / "config.json", vision_config | {"architectures": ["CLIPVisionModel"]})
    shutil.copyfile(source / "preprocessor_config.json", tower / "preprocessor_config.json")

    names = list(weights)
    files = {}
    for number in range(num_shards):
        file_name = f"model-{number + 1:05}-of-{num_shards:05}.safetensors" if num_shards > 1 else "model.safetensors"
        part = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        save_file({name: weights[name] for name in part}, directory / file_name, metadata={"format": "pt"})
        files.update(dict.fromkeys(part, file_name))
    if num_shards > 1:
        size = sum(tensor.nbytes for tensor in weights.values())
        _write_json(directory / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": files})
    special = read_json_object(source / "special_tokens_map.json")
    special["pad_token"] = special["unk_token"]  # token 0
    tokenizer = read_json_object(source / "tokenizer_config.json") | special
    del tokenizer["processor_class"]
    if "added_tokens_decoder" in tokenizer:
        added = tokenizer["added_tokens_decoder"].items()
        tokenizer["added_tokens_decoder"] = {index: token for index, token in added if int(index) < vocabulary}
    _write_json(
        directory / "config.json",
        text_config
        | {
            "architectures": ["LlavaLlamaForCausalLM"],
            "model_type": "llava_llama",
            "vocab_size": vocabulary,
            "pad_token_id": 0,
            "mm_vision_tower": str(tower),
            "mm_hidden_size": vision_config["hidden_size"],
            "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": config["vision_feature_layer"],
            "mm_vision_select_feature": "patch",
            "mm_use_im_start_end": False,
            "mm_use_im_patch_token": False,
            "image_aspect_ratio": "pad",
            "use_mm_proj": True,
            "use_cache": True,
        },
    )
    ends = {name: text_config[name] for name in ("bos_token_id", "eos_token_id")}
    _write_json(directory / "generation_config.json", ends | {"pad_token_id": 0})
    _write_json(directory / "tokenizer_config.json", tokenizer)
    _write_json(directory / "special_tokens_map.json", special)
    for file in source.glob("tokenizer.*"):
        shutil.copyfile(file, directory / file.name)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
