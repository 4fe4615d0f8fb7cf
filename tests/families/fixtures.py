"""A tiny checkpoint of every supported family, saved by the stock class or under hand-written names.

The stock class says which tensors there are and what config.json holds; every weight is then drawn anew, seeded,
so that nothing in it is trivial: no bias is zero and no two tensors are alike.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]

HUGGING_FACE = ("LlavaForConditionalGeneration", "language_model.model.layers")
ORIGINAL = ("LlamaForCausalLM", "model.layers")

# 3 layers of 4 heads, 2 kv heads, 8 wide.
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 16,
}
SIGLIP = {name: value for name, value in CLIP.items() if name != "projection_dim"} | {
    "model_type": "siglip_vision_model"
}
MULTIMODAL = re.compile(r"model\.(mm_projector|vision_tower|image_newline)\b.*|visual\..*")


@dataclass(frozen=True)
class Fixture:
    """One family as people meet it.

    *layers* is what the names of its decoder layers begin with. *saved_by* is the class of transformers that says
    which tensors there are, with *config*; *rename* and *add* make the family's own names and further tensors of
    them, *drop* names some that are not there, and *settings* changes config.json (None removes an entry).
    *loaded_by* is ``module:class`` of the stock code that must load it; tensors of *not_loaded* are none of its.
    Versions of transformers before *loaded_since* do not know its names.
    """

    name: str
    model_type: str
    layers: str
    saved_by: str
    config: Mapping[str, Any]
    loaded_by: str
    directory: str = "checkpoint"
    rename: Callable[[str], str] = lambda name: name
    add: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    not_loaded: re.Pattern[str] | None = None
    fused: bool = False
    loaded_since: str = "0"

    @property
    def num_heads(self) -> int:
        return int(self._text_config["num_attention_heads"])

    @property
    def num_kv_heads(self) -> int:
        return int(self._text_config["num_key_value_heads"])

    @property
    def head_dim(self) -> int:
        return int(self._text_config.get("head_dim") or self._text_config["hidden_size"] // self.num_heads)

    @property
    def _text_config(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.config.get("text_config", self.config)
        return found

    def write(self, parent: Path, dtype: torch.dtype, *, form: str = "two shards") -> Path:
        """Write it into a new directory of *parent*; skips the test where the stock class is too new for here."""
        path = parent / self.directory
        tensors = self._tensors(path)
        tensors = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tensors.items()}
        names = sorted(tensors)
        parts = [names] if form == "one file" else [names[::2], names[1::2]]
        suffix, prefix = (".bin", "pytorch_model") if form == ".bin" else (".safetensors", "model")
        files = [
            f"{prefix}{suffix}" if len(parts) == 1 else f"{prefix}-{n + 1:05}-of-{len(parts):05}{suffix}"
            for n in range(len(parts))
        ]
        for file, part in zip(files, parts, strict=True):
            held = {name: tensors[name].contiguous() for name in part}
            if form == ".bin":
                torch.save(held, path / file)
            else:
                save_file(held, path / file, metadata={"format": "pt"})
        if len(parts) > 1:
            weight_map = {name: file for file, part in zip(files, parts, strict=True) for name in part}
            (path / f"{prefix}{suffix}.index.json").write_text(
                json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
            )
        # transformers 5 loads in the dtype that the config names, whatever the file holds.
        config = json.loads((path / "config.json").read_text())
        config.pop("dtype", None)
        config["torch_dtype"] = str(dtype).removeprefix("torch.")
        (path / "config.json").write_text(json.dumps(config, indent=2))
        return path

    def stock_class(self) -> Any:
        """The class that must load it; skips the test where it is not installed."""
        if Version(transformers.__version__) < Version(self.loaded_since):
            pytest.skip(f"transformers {transformers.__version__} does not know these names")
        module, _, name = self.loaded_by.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            pytest.skip(f"{module} here has no {name}")

    def _tensors(self, path: Path) -> Tensors:
        saved_by = getattr(transformers, self.saved_by, None)
        if saved_by is None:
            pytest.skip(f"transformers {transformers.__version__} has no {self.saved_by}")
        path.mkdir(parents=True)
        with tempfile.TemporaryDirectory() as scratch:
            try:
                saved_by(saved_by.config_class(**_copied(self.config))).save_pretrained(scratch)
            except KeyError as error:
                pytest.skip(f"transformers {transformers.__version__} has no language model {error}")
            tensors = {
                self.rename(_tower_name(name)): t for name, t in load_file(f"{scratch}/model.safetensors").items()
            }
            config = json.loads(Path(scratch, "config.json").read_text())
        config = {name: value for name, value in _merged(config, self.settings).items() if value is not None}
        config["model_type"] = self.model_type
        (path / "config.json").write_text(json.dumps(config))
        tensors = {name: tensor for name, tensor in tensors.items() if name not in self.drop}
        tensors |= {name: torch.empty(shape) for name, shape in self.add.items()}
        generator = np.random.Generator(np.random.PCG64(len(tensors)))
        return {name: _random(name, tensors[name], generator) for name in sorted(tensors)}


def _copied(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that a config class may change."""
    copied: dict[str, Any] = json.loads(json.dumps(dict(config)))
    return copied


def _merged(config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in settings.items():
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = {n: v for n, v in (merged[name] | value).items() if v is not None}
        else:
            merged[name] = value
    return merged


def _tower_name(name: str) -> str:
    """A CLIP tower's tensor as released checkpoints name it; saved from scratch, transformers 5 drops a part."""
    return re.sub(r"^((?:vision|image|video)_tower\.)(?!vision_model\.)", r"\1vision_model.", name)


def _random(name: str, tensor: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    values = torch.from_numpy(generator.normal(0, 0.2, tuple(tensor.shape)).astype(np.float32))
    return values + 1 if "norm" in name and name.endswith(".weight") else values


def _nested(model_type: str, tower: Mapping[str, Any], **text: Any) -> dict[str, Any]:
    return {
        "text_config": {"model_type": model_type, **TEXT, **text},
        "vision_config": dict(tower),
        "image_token_index": 60,
        "tie_word_embeddings": False,
    }


def _spelling_d(name: str) -> str:
    """As transformers 4.52 and later have the names in memory."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return "model." + name


def _spelling_e(name: str) -> str:
    """As transformers 5.4 and 5.5 saved them."""
    return name.removeprefix("language_model.") if "lm_head" in name else "model." + name


def _tower(prefix: str) -> dict[str, tuple[int, ...]]:
    """A CLIP tower of 2 layers, 16 wide, with the names that CLIPVisionModel gives its tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (16,),
        "embeddings.patch_embedding.weight": (16, 3, 14, 14),
        "embeddings.position_embedding.weight": (5, 16),
    }
    for norm in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{norm}.weight": (16,), f"{norm}.bias": (16,)}
    for layer in range(2):
        at = f"encoder.layers.{layer}."
        for norm in ("layer_norm1", "layer_norm2"):
            shapes |= {f"{at}{norm}.weight": (16,), f"{at}{norm}.bias": (16,)}
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{at}self_attn.{projection}.weight": (16, 16), f"{at}self_attn.{projection}.bias": (16,)}
        shapes |= {f"{at}mlp.fc1.weight": (32, 16), f"{at}mlp.fc1.bias": (32,)}
        shapes |= {f"{at}mlp.fc2.weight": (16, 32), f"{at}mlp.fc2.bias": (16,)}
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


LINEAR_PROJECTOR = {"model.mm_projector.weight": (32, 16), "model.mm_projector.bias": (32,)}
MLP_PROJECTOR = {
    "model.mm_projector.0.weight": (32, 16),
    "model.mm_projector.0.bias": (32,),
    "model.mm_projector.2.weight": (32, 32),
    "model.mm_projector.2.bias": (32,),
}
WITH_TOWER = MLP_PROJECTOR | {"model.image_newline": (32,)} | _tower("model.vision_tower.vision_tower.vision_model.")
MM_SETTINGS = {
    "mm_vision_tower": "tower",
    "mm_hidden_size": 16,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "use_mm_proj": True,
}
TOWER_SETTINGS = MM_SETTINGS | {"mm_patch_merge_type": "spatial_unpad", "unfreeze_mm_vision_tower": True}


def _hugging_face(name: str, model_type: str, stock: str, config: Mapping[str, Any], **options: Any) -> Fixture:
    options = {"layers": "language_model.model.layers", "loaded_by": f"transformers:{stock}"} | options
    return Fixture(name, model_type, saved_by=stock, config=config, **options)


def _original(name: str, model_type: str, base: str, stock: str, **options: Any) -> Fixture:
    options = {"config": TEXT, "settings": MM_SETTINGS, "add": MLP_PROJECTOR} | options
    return Fixture(name, model_type, layers="model.layers", saved_by=base, loaded_by=stock, **options)


def _onevision_1_5(name: str, layers: str) -> Fixture:
    text = TEXT | {"head_dim": 16}
    return Fixture(
        name,
        "llavaonevision1_5",
        layers,
        saved_by="Qwen3ForCausalLM",
        config=text,
        loaded_by="transformers:Qwen3ForCausalLM",
        rename=lambda tensor: re.sub(r"^model\.", layers.removesuffix("layers"), tensor),
        add={"visual.blocks.0.attn.qkv.weight": (48, 16), "visual.patch_embed.proj.weight": (16, 3, 14, 14)},
        settings={"text_config": {"model_type": "LLaVAOneVision1_5_text", **text}},
        not_loaded=MULTIMODAL,
    )


def _plain(model_type: str, stock: str, **options: Any) -> Fixture:
    config = TEXT | options.pop("text", {})
    return Fixture(stock, model_type, "model.layers", stock, config, f"transformers:{stock}", **options)


_LLAVA = "LlavaForConditionalGeneration"
_GRID = {"image_grid_pinpoints": [[28, 56]]}

FIXTURES = (
    _hugging_face("LLaVA-1.5", "llava", _LLAVA, _nested("llama", CLIP)),
    _hugging_face(
        "LLaVA-1.5, names of transformers 4.52", "llava", _LLAVA, _nested("llama", CLIP),
        layers="model.language_model.layers", rename=_spelling_d, loaded_since="4.52",
    ),
    _hugging_face(
        "LLaVA-1.5, names of transformers 5.4", "llava", _LLAVA, _nested("llama", CLIP),
        layers="model.language_model.model.layers", rename=_spelling_e, loaded_since="5.4",
    ),
    _hugging_face(
        "LLaVA on Llama-3 (8 kv heads)", "llava", _LLAVA,
        _nested("llama", CLIP, num_attention_heads=16, num_key_value_heads=8, rope_theta=500000.0),
    ),
    _hugging_face(
        "BakLLaVA (Mistral, partial text_config)", "llava", _LLAVA,
        _nested("mistral", CLIP, num_attention_heads=16, num_key_value_heads=8),
        settings={"text_config": {"num_key_value_heads": None}},
    ),
    _hugging_face(
        "LLaVA-Interleave (Qwen2)", "llava", _LLAVA,
        _nested("qwen2", SIGLIP) | {"vision_feature_select_strategy": "full"},
    ),
    _hugging_face("LLaVA on Phi-3 (fused qkv)", "llava", _LLAVA, _nested("phi3", CLIP), fused=True),
    _hugging_face(
        "LLaVA-NeXT", "llava_next", "LlavaNextForConditionalGeneration", _nested("mistral", CLIP, head_dim=8) | _GRID
    ),
    _hugging_face(
        "LLaVA-NeXT-Video", "llava_next_video", "LlavaNextVideoForConditionalGeneration", _nested("llama", CLIP) | _GRID
    ),
    _hugging_face(
        "LLaVA-OneVision", "llava_onevision", "LlavaOnevisionForConditionalGeneration", _nested("qwen2", SIGLIP)
    ),
    _hugging_face("Video-LLaVA", "video_llava", "VideoLlavaForConditionalGeneration", _nested("llama", CLIP)),
    _hugging_face(
        "ViP-LLaVA", "vipllava", "VipLlavaForConditionalGeneration",
        _nested("llama", CLIP) | {"vision_feature_layers": [-1, -1, -1, -1, -1]},
    ),
    _onevision_1_5("LLaVA-OneVision-1.5", "model.layers"),
    _onevision_1_5("LLaVA-OneVision-1.5, names in memory", "model.language_model.layers"),
    _original(
        "LLaVA v1, model_type llava", "llava", "LlamaForCausalLM", "llava.model:LlavaLlamaForCausalLM",
        directory="llava-v1", add=LINEAR_PROJECTOR, settings=MM_SETTINGS | {"mm_projector_type": "linear"},
    ),
    _original(
        "LLaVA v1.5, no tower", "llava_llama", "LlamaForCausalLM", "llava.model:LlavaLlamaForCausalLM",
        directory="llava-v1.5", config=TEXT | {"num_key_value_heads": 4},
    ),
    _original(
        "LLaVA v1.6 with tower", "llava_llama", "LlamaForCausalLM", "llava.model:LlavaLlamaForCausalLM",
        directory="llava-v1.6", add=WITH_TOWER, settings=TOWER_SETTINGS,
    ),
    _original(
        "LLaVA v1.6 Mistral with tower", "llava_mistral", "MistralForCausalLM", "llava.model:LlavaMistralForCausalLM",
        directory="llava-v1.6-mistral", add=WITH_TOWER, settings=TOWER_SETTINGS,
    ),
    _original(
        "LLaVA-NeXT / OneVision of lmms-lab (Qwen2, tied)", "llava_qwen", "Qwen2ForCausalLM",
        "transformers:Qwen2ForCausalLM", directory="llava-qwen", config=TEXT | {"tie_word_embeddings": True},
        add=WITH_TOWER, settings=TOWER_SETTINGS, not_loaded=MULTIMODAL,
    ),
    _plain("llama", "LlamaForCausalLM"),
    _plain("mistral", "MistralForCausalLM"),
    _plain("qwen2", "Qwen2ForCausalLM"),
    _plain("qwen3", "Qwen3ForCausalLM", text={"head_dim": 16}),
    _plain("phi3", "Phi3ForCausalLM", fused=True),
)  # fmt: skip
