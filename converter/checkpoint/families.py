"""The table of supported families, that of their language models, and which of them a checkpoint is.

What tells the family looks at names and at config.json alone, so that a repository on the Hub can be judged before its
weights are downloaded. *path* is for messages; *entries* are the names of what stands at its top.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .files import CONFIG_FILE, INDEX_FILE, SINGLE_FILE, TORCH_INDEX_FILE, TORCH_SINGLE_FILE
from .refusals import (
    refuse_adapter,
    refuse_delta,
    refuse_misnamed_weights,
    refuse_model_type,
    refuse_other_formats,
    refuse_quantised,
    refuse_weights_elsewhere,
)


@dataclass(frozen=True)
class LanguageModel:
    """A type of language model.

    *stock_type* is the ``model_type`` of the stock class that runs it. The sizes are what its config class
    assumes where a (partial) config is silent; None means as many kv heads as heads, and hidden_size over heads
    for *head_dim*. *settings* are further defaults in which the config class differs from the stock class's.
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
    # Qwen3 under another name; the multimodal rotary embedding is the plain one for text and single images.
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
    """The language model that a config calls *model_type*; *where* names the config's file in errors.

    Raises:
        CheckpointError: it is not supported.
    """
    for language_model in LANGUAGE_MODELS:
        if language_model.model_type == model_type:
            return language_model
    refuse_model_type(model_type, where)
    supported = ", ".join(language_model.model_type for language_model in LANGUAGE_MODELS)
    raise CheckpointError(
        f"{where}: language model {model_type!r} is not supported; use a checkpoint with one of {supported}"
    )


ORIGINAL = "original"
HUGGING_FACE = "Hugging Face"
LANGUAGE_MODEL = "language model"

# What the keys of the language model begin with; "model.language_model.layers" and "language_model.model.layers"
# are the same tensors as different versions of transformers name them.
_FLAT = r"model\."
_NESTED = r"(?:model\.)?language_model\.(?:model\.)?"
_FLAT_OR_NESTED = r"model\.(?:language_model\.)?"


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: *model_type* as its config spells it, *lineage* as to who loads it.

    *prefix* is the pattern that the language model's keys begin with. *language_model* is its type; where
    *nested*, its config stands in ``text_config``, whose own ``model_type`` comes first.
    """

    model_type: str
    lineage: str
    prefix: str
    language_model: str
    nested: bool

    def layer_key(self, name: str) -> tuple[int, str] | None:
        """(decoder layer, name inside that layer) of a tensor, or None where it is in no decoder layer."""
        match = re.fullmatch(self.prefix + r"layers\.(0|[1-9][0-9]{0,5})\.(.+)", name)
        return (int(match[1]), match[2]) if match else None

    def is_embedding(self, name: str) -> bool:
        """Whether *name* is the language model's table of token embeddings."""
        return re.fullmatch(self.prefix + r"embed_tokens\.weight", name) is not None

    def read_language_model(self, config: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any], LanguageModel]:
        """The language model's part of *config*, and its type; *where* names the file in errors.

        Raises:
            CheckpointError: there is no such part, or its type is not supported.
        """
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
    """The family of the checkpoint whose config.json holds *config*; *where* names that file in errors.

    Raises:
        CheckpointError: of no family of the table.
    """
    model_type = config.get("model_type")
    if model_type == "llava" and "text_config" not in config:
        model_type = "llava_llama"  # what original LLaVA called itself before v1.2.0
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    refuse_model_type(model_type, where)
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise CheckpointError(
        f"{where}: model_type {model_type!r} is not one this tool knows (it knows {supported}); "
        "check that this is the checkpoint you mean"
    )


def check_entries(path: Path, entries: Collection[str]) -> None:
    """Refuse what no config.json needs to be read for.

    Raises:
        CheckpointError: an adapter, a delta, another format, or no checkpoint at all.
    """
    refuse_adapter(path, entries)
    refuse_delta(path)
    if CONFIG_FILE not in entries:
        refuse_other_formats(path, entries)
        raise CheckpointError(f"{path}: has no {CONFIG_FILE}; give the directory of a checkpoint")


def read_family(path: Path, entries: Collection[str], config: Mapping[str, Any]) -> Family:
    """The family of the checkpoint whose config.json holds *config*.

    Raises:
        CheckpointError: its weights are quantised or elsewhere, or it is of no family that is known.
    """
    refuse_quantised(path, entries, config)
    refuse_weights_elsewhere(path, config)
    return find_family(config, str(path / CONFIG_FILE))


def find_weights(path: Path, entries: Collection[str]) -> str:
    """The file that stock loaders begin at: a single file of weights, or an index; safetensors come before ``.bin``.

    Raises:
        CheckpointError: there is none, or there are two of one kind.
    """
    for single, index in ((SINGLE_FILE, INDEX_FILE), (TORCH_SINGLE_FILE, TORCH_INDEX_FILE)):
        if single in entries and index in entries:
            raise CheckpointError(
                f"{path}: has both {single} and {index}, and loaders differ in which they read; remove one"
            )
        if single in entries or index in entries:
            return single if single in entries else index
    refuse_other_formats(path, entries)
    refuse_misnamed_weights(path, entries)
    raise CheckpointError(
        f"{path}: has none of {SINGLE_FILE}, {INDEX_FILE}, {TORCH_SINGLE_FILE}, {TORCH_INDEX_FILE}; "
        "download the weights as well"
    )
