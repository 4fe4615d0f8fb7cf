"""How checkpoint families name their language model's tensors and where its geometry stands.

A family is a row of :data:`FAMILIES`; to add one, add a row, and a fixture to the tests. Key patterns are
anchored, because the keys of a CLIP tower also contain ``layers.N.self_attn.q_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.checkpoint.language_models import LanguageModel, find_language_model
from converter.checkpoint.refusals import refuse_model_type
from converter.errors import CheckpointError

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
