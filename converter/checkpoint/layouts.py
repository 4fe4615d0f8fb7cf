"""How checkpoint families name their attention tensors and where their geometry stands.

A family is a row of :data:`FAMILIES`. Key patterns are anchored, because the keys of a CLIP tower also
contain ``layers.N.self_attn.q_proj``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converter.errors import CheckpointError

PROJECTIONS = ("q", "k", "v", "o")

ORIGINAL = "original"
HUGGING_FACE = "Hugging Face"

# Group 1 is the decoder layer, group 2 what follows its name.
_LAYER_PATTERNS = {
    ORIGINAL: re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)"),
    HUGGING_FACE: re.compile(r"(?:model\.)?language_model\.(?:model\.)?layers\.(0|[1-9][0-9]{0,5})\.(.+)"),
}
_EMBEDDING_PATTERNS = {
    ORIGINAL: re.compile(r"model\.embed_tokens\.weight"),
    HUGGING_FACE: re.compile(r"(?:model\.)?language_model\.(?:model\.)?embed_tokens\.weight"),
}
_PROJECTION_PATTERN = re.compile(r"self_attn\.([qkvo])_proj\.(weight|bias)")


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: *model_type* as its config spells it, *lineage* as its keys are named.

    *text_model_type* is the language model's type, or None where ``text_config`` says it.
    """

    model_type: str
    lineage: str
    text_model_type: str | None

    def layer_key(self, name: str) -> tuple[int, str] | None:
        """(decoder layer, name inside that layer) of a tensor, or None where it is in no decoder layer."""
        match = _LAYER_PATTERNS[self.lineage].fullmatch(name)
        return (int(match[1]), match[2]) if match else None

    def is_embedding(self, name: str) -> bool:
        """Whether *name* is the language model's table of token embeddings."""
        return _EMBEDDING_PATTERNS[self.lineage].fullmatch(name) is not None


def projection_of(name_in_layer: str) -> tuple[str, str] | None:
    """(``q``/``k``/``v``/``o``, ``weight``/``bias``) of a tensor inside a decoder layer, or None."""
    match = _PROJECTION_PATTERN.fullmatch(name_in_layer)
    return (match[1], match[2]) if match else None


FAMILIES = (
    Family("llava", HUGGING_FACE, None),
    Family("llava_llama", ORIGINAL, "llama"),
    Family("llava_mistral", ORIGINAL, "mistral"),
    Family("llava_qwen", ORIGINAL, "qwen2"),
)


def find_family(config: Mapping[str, Any], where: str) -> Family:
    """The family of the checkpoint whose config.json holds *config*; *where* names that file in errors.

    Raises:
        CheckpointError: quantised, or of no family of the table.
    """
    text_config = config.get("text_config")
    if config.get("quantization_config") or (isinstance(text_config, dict) and text_config.get("quantization_config")):
        raise CheckpointError(f"{where}: the weights are quantised; dequantise them and save the checkpoint first")
    model_type = config.get("model_type")
    if model_type == "llava" and "text_config" not in config:
        model_type = "llava_llama"  # what original LLaVA called itself before v1.2.0
    for family in FAMILIES:
        if family.model_type == model_type:
            return family
    supported = ", ".join(family.model_type for family in FAMILIES)
    raise CheckpointError(
        f"{where}: model_type {model_type!r} is not a LLaVA this tool knows (it knows {supported}); "
        "check that this is the checkpoint you mean"
    )
