"""The metadata of OUT's card: what the Hub shows and searches by."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from converter.card.base_card import BaseCard
from converter.checkpoint import Checkpoint
from converter.checkpoint.layouts import LANGUAGE_MODEL, ORIGINAL

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

TAGS = ("s4convert", "pruned", "attention-head-pruning")
# What the base's card says of the unpruned model, or of what that was made from.
_NOT_OF_THE_PRUNED = ("base_model", "base_model_relation", "eval_results", "model-index", "model_name", "widget")


def card_metadata(checkpoint: Checkpoint, base: BaseCard) -> ModelCardData:
    """The metadata of a card for *checkpoint*'s conversion: licence, languages, data and the like are the base's."""
    from huggingface_hub import ModelCardData

    kept: dict[str, Any] = {name: value for name, value in base.metadata.items() if name not in _NOT_OF_THE_PRUNED}
    lineage = checkpoint.family.lineage
    kept.setdefault("library_name", "llava" if lineage == ORIGINAL else "transformers")
    kept.setdefault("pipeline_tag", "text-generation" if lineage == LANGUAGE_MODEL else "image-text-to-text")
    tags = kept.pop("tags", None) or []
    kept["tags"] = [*(tags if isinstance(tags, list) else [tags]), *(tag for tag in TAGS if tag not in tags)]
    name = base_model(checkpoint)
    if name is not None:
        # Of the Hub's relations (adapter, merge, quantized, finetune) this is what whole weights with other numbers
        # in them are; pruning has none of its own.
        kept |= {"base_model": name, "base_model_relation": "finetune"}
    return ModelCardData(**kept)


def base_model(checkpoint: Checkpoint) -> str | None:
    """*checkpoint*'s name on the Hub, where it came from there, be it by way of the client's cache; else None."""
    if checkpoint.repository is not None:
        return checkpoint.repository.repo_id
    parts = checkpoint.path.absolute().parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        cached = re.fullmatch(r"models--([^-].*?)--(.+)", parts[-3])
        return f"{cached[1]}/{cached[2]}" if cached else None
    return None
