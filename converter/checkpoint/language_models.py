"""The language models inside checkpoints: which stock class runs them, and what it assumes of their geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from converter.checkpoint.refusals import refuse_model_type
from converter.errors import CheckpointError


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
