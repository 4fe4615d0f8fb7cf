"""The class that stock LLaVA loads a directory as: it decides by the directory's name, not by config.json.

Source: ``load_pretrained_model`` in llava/model/builder.py of original LLaVA and, for ``llava_qwen``, of LLaVA-NeXT.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import UsageError
from .families import ORIGINAL, Family

_LLAMA, _MISTRAL, _QWEN = "LlavaLlamaForCausalLM", "LlavaMistralForCausalLM", "LlavaQwenForCausalLM"

# For each model_type: the class of its weights, and a name that stock LLaVA loads as that class.
_WANTED = {
    "llava_llama": (_LLAMA, "llava"),
    "llava_mistral": (_MISTRAL, "llava-mistral"),
    "llava_qwen": (_QWEN, "llava-qwen"),
}

# The first row decides all of whose substrings are in the name.
_Rules = tuple[tuple[tuple[str, ...], str], ...]
_ORIGINAL_RULES: _Rules = (
    (("lora",), "a LoRA adapter"),
    (("mpt",), "LlavaMptForCausalLM"),
    (("mistral",), _MISTRAL),
    ((), _LLAMA),
)
_NEXT_RULES: _Rules = (
    (("lora",), "a LoRA adapter"),
    (("mixtral",), "LlavaMixtralForCausalLM"),
    (("mistral",), _MISTRAL),
    (("zephyr",), _MISTRAL),
    (("wizardlm-2", "vicuna"), _LLAMA),
    (("llama",), _LLAMA),
    (("yi",), _LLAMA),
    (("nous-hermes",), _LLAMA),
    (("llava-v1.6-34b",), _LLAMA),
    (("llava-v1.5",), _LLAMA),
    (("qwen", "moe"), "LlavaQwenMoeForCausalLM"),
    (("quyen", "moe"), "LlavaQwenMoeForCausalLM"),
    (("qwen",), _QWEN),
    (("quyen",), _QWEN),
    (("gemma",), "LlavaGemmaForCausalLM"),
    ((), _LLAMA),
)

# It contains no substring that loaders and evaluation scripts look for.
SUFFIX = "-pruned"


def check_loader_name(family: Family, source: Path, out: Path) -> None:
    """Raise UsageError, with a better name, where stock LLaVA would load *out* as another class than *source*."""
    if family.lineage != ORIGINAL:
        return
    wanted, found = _WANTED[family.model_type][0], _class_by_name(family, out.absolute().name)
    if found != wanted:
        raise UsageError(
            f"{out}: stock LLaVA goes by a directory's name and would load this one as {found}, not as {wanted}; "
            f"name it {suggest_name(family, source)}, or insist with `allow_name=True`"
        )


def suggest_name(family: Family, source: Path) -> str:
    """A name for the conversion of *source* that stock LLaVA loads as the class of *family*."""
    source = source.resolve()
    name = f"{source.parent.name}-{source.name}" if source.name.startswith("checkpoint-") else source.name
    wanted, plain = _WANTED[family.model_type]
    candidates = (name + SUFFIX, f"{plain}-{name}{SUFFIX}", plain + SUFFIX)
    return next(candidate for candidate in candidates if _class_by_name(family, candidate) == wanted)


def _class_by_name(family: Family, name: str) -> str:
    if name.startswith("checkpoint-"):
        return "whatever the directory above it is named after"
    if "llava" not in name.lower():
        return "a plain language model"
    rules = _NEXT_RULES if family.model_type == "llava_qwen" else _ORIGINAL_RULES
    return next(found for parts, found in rules if all(part in name.lower() for part in parts))
