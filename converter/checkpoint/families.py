"""The supported families and language models, and which of them a checkpoint is.

The functions look only at file names and at config.json, so that they can judge a repository on the Hub before its
weights are downloaded. *path* is for messages; *entries* are the names at its top level.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, shown
from .files import CONFIG_FILE
from .refusals import (
    ADAPTERS,
    OTHER_FORMATS,
    refuse_delta,
    refuse_files,
    refuse_model_type,
    refuse_quantised,
    refuse_weights_elsewhere,
)


@dataclass(frozen=True)
class LanguageModel:
    """A type of language model.

    *stock_type* is the ``model_type`` of the stock class that runs it. The sizes are the defaults of its config class;
    None stands for as many kv heads as heads, and for a *head_dim* of hidden_size / heads. *settings* are other
    defaults that differ from those of the stock class.
    """

    model_type: str
    stock_type: str
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


LANGUAGE_MODELS = (
    LanguageModel("llama", "llama"),
    LanguageModel("mistral", "mistral", num_key_value_heads=8),
    LanguageModel("qwen2", "qwen2", num_key_value_heads=32),
    LanguageModel("qwen3", "qwen3", num_key_value_heads=32, head_dim=128),
    LanguageModel("phi3", "phi3", hidden_size=3072),
    # Qwen3 under another name; for text and single images, its multimodal rotary embedding is the plain one.
    LanguageModel(
        "LLaVAOneVision1_5_text",
        "qwen3",
        hidden_size=2560,
        num_hidden_layers=36,
        num_key_value_heads=8,
        head_dim=128,
        settings={"rope_theta": 5_000_000.0, "intermediate_size": 9728},
    ),
)


def find_language_model(model_type: object, where: str) -> LanguageModel:
    """The language model with this *model_type*, from the file *where*; CheckpointError where it is not supported."""
    for language_model in LANGUAGE_MODELS:
        if language_model.model_type == model_type:
            return language_model
    refuse_model_type(model_type, where)
    supported = ", ".join(language_model.model_type for language_model in LANGUAGE_MODELS)
    raise CheckpointError(
        f"{where}: language model {shown(model_type)} is not supported; use a checkpoint with one of {supported}"
    )


ORIGINAL = "original"
HUGGING_FACE = "Hugging Face"
LANGUAGE_MODEL = "language model"

# The prefixes of the language model's tensors. Versions of transformers differ: the same tensors are
# "model.language_model.layers" or "language_model.model.layers".
_FLAT = r"model\."
_NESTED = r"(?:model\.)?language_model\.(?:model\.)?"
_FLAT_OR_NESTED = r"model\.(?:language_model\.)?"


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: the *model_type* in its config, and its *lineage*, which says what code loads it.

    *prefix* is a pattern: the names of the language model's tensors begin with it. *language_model* is its type. Where
    *nested*, ``text_config`` holds its config, and a ``model_type`` there overrides *language_model*.
    """

    model_type: str
    lineage: str
    prefix: str
    language_model: str
    nested: bool

    def layer_key(self, name: str) -> tuple[int, str] | None:
        """(decoder layer, name inside that layer) of the tensor *name*, or None where it is in no decoder layer."""
        match = re.fullmatch(self.prefix + r"layers\.(0|[1-9][0-9]{0,5})\.(.+)", name)
        return (int(match[1]), match[2]) if match else None

    def is_embedding(self, name: str) -> bool:
        """Whether *name* is the language model's table of token embeddings."""
        return re.fullmatch(self.prefix + r"embed_tokens\.weight", name) is not None

    def is_final_norm(self, name: str) -> bool:
        """Whether *name* is the norm behind the last decoder layer."""
        return re.fullmatch(self.prefix + r"norm\.weight", name) is not None

    def is_vocabulary_projection(self, name: str) -> bool:
        """Whether *name* is the map from hidden states to the vocabulary."""
        return re.fullmatch(r"(?:(?:model\.)?language_model\.)?lm_head\.weight", name) is not None

    def read_language_model(self, config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], LanguageModel]:
        """(the language model's part of *config*, its type); CheckpointError where one is missing or not supported."""
        if not self.nested:
            return config, find_language_model(self.language_model, where)
        text_config = config.get("text_config")
        if not isinstance(text_config, dict):
            raise CheckpointError(f"{where}: has no text_config, as {self.model_type} has; restore the file")
        return text_config, find_language_model(text_config.get("model_type", self.language_model), where)


FAMILIES = (
    Family("llava", HUGGING_FACE, _NESTED, "llama", nested=True),
    Family("llava_next", HUGGING_FACE, _NESTED, "llama", nested=True),
    Family("llava_next_video", HUGGING_FACE, _NESTED, "llama", nested=True),
    Family("llava_onevision", HUGGING_FACE, _NESTED, "qwen2", nested=True),
    Family("video_llava", HUGGING_FACE, _NESTED, "llama", nested=True),
    Family("vipllava", HUGGING_FACE, _NESTED, "llama", nested=True),
    Family("llavaonevision1_5", HUGGING_FACE, _FLAT_OR_NESTED, "LLaVAOneVision1_5_text", nested=True),
    Family("llava_llama", ORIGINAL, _FLAT, "llama", nested=False),
    Family("llava_mistral", ORIGINAL, _FLAT, "mistral", nested=False),
    Family("llava_qwen", ORIGINAL, _FLAT, "qwen2", nested=False),
    Family("llama", LANGUAGE_MODEL, _FLAT, "llama", nested=False),
    Family("mistral", LANGUAGE_MODEL, _FLAT, "mistral", nested=False),
    Family("qwen2", LANGUAGE_MODEL, _FLAT, "qwen2", nested=False),
    Family("qwen3", LANGUAGE_MODEL, _FLAT, "qwen3", nested=False),
    Family("phi3", LANGUAGE_MODEL, _FLAT, "phi3", nested=False),
)


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json that holds *config*, the file *where*; CheckpointError where it is not supported."""
    model_type = config.get("model_type")
    if model_type == "llava" and "text_config" not in config:
        model_type = "llava_llama"  # original LLaVA before v1.2.0
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    refuse_model_type(model_type, where)
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise CheckpointError(
        f"{where}: model_type {shown(model_type)} is not one this tool knows (it knows {supported}); "
        "check that this is the checkpoint you mean"
    )


def check_entries(path: Path, entries: Collection[str]) -> None:
    """Raise CheckpointError where file names tell an adapter, a delta, another format, or no checkpoint at all."""
    refuse_files(path, entries, ADAPTERS)  # also beside weights, which an adapter changes
    refuse_delta(path)
    if CONFIG_FILE not in entries:
        refuse_files(path, entries, OTHER_FORMATS)
        raise CheckpointError(f"{path}: has no {CONFIG_FILE}; give the directory of a checkpoint")


def read_family(path: Path, entries: Collection[str], config: Mapping[str, Any]) -> Family:
    """The family of a config.json that holds *config*; CheckpointError where the checkpoint cannot be converted."""
    refuse_quantised(path, entries, config)
    refuse_weights_elsewhere(path, config)
    return find_family(config, str(path / CONFIG_FILE))
