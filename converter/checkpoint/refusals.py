"""Known kinds of checkpoints that cannot be converted: each is named, with what to do instead.

*names* are the names at the top of *path*, a directory or a repository on the Hub.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError, shown

_MPT = "is MPT, which stock LLaVA cannot run any more; use a checkpoint with a Llama, Mistral or Qwen2 language model"
_INTERNLM2 = (
    "is InternLM2, whose wqkv interleaves the heads of a kv group; save it with Llama's names (split wqkv) first"
)
_TOWER = "is a vision tower alone; give the directory of the whole LLaVA"
_MOE = "is a mixture of experts, which is not supported; use a dense checkpoint"

# By the model_type in config.json or in its text_config.
MODEL_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("llava_mpt", "mpt"), _MPT),
    **dict.fromkeys(("internlm2", "internlm", "internlmxcomposer2", "internvl_chat"), _INTERNLM2),
    **dict.fromkeys(("clip", "clip_vision_model", "siglip", "siglip_vision_model"), _TOWER),
    **dict.fromkeys(("llava_mixtral", "mixtral", "llava_qwen_moe", "qwen2_moe", "qwen3_moe"), _MOE),
}

_MERGE = (
    "merge it into its base model first (scripts/merge_lora_weights.py of LLaVA), then convert the merged checkpoint"
)

# Patterns of file names, in order: the message is that of the first pattern that a file matches.
ADAPTERS = (
    ("adapter_config.json", f"is a LoRA adapter; {_MERGE}"),
    ("adapter_model.*", f"is a LoRA adapter; {_MERGE}"),
    ("non_lora_trainables.bin", f"is the rest of a LoRA training; {_MERGE}"),
)

# Formats that are not read.
OTHER_FORMATS = (
    ("mm_projector.bin", "holds the projector alone; give the directory of the whole LLaVA that it was trained into"),
    ("*.gguf", "is GGUF; convert the original checkpoint instead, then make the GGUF file from the result"),
    ("*.ggml", "is GGML; convert the original checkpoint instead, then make the GGML file from the result"),
    ("*.onnx", "is ONNX; convert the original checkpoint instead, then export the result"),
    ("flax_model*.msgpack*", "is a Flax checkpoint; load it with from_flax=True and save it as safetensors first"),
    ("tf_model*.h5*", "is a TensorFlow checkpoint; load it with from_tf=True and save it as safetensors first"),
    ("consolidated.*", "is in the format of the model's authors; convert it to the Hugging Face format first"),
    ("zero_to_fp32.py", "belongs to a DeepSpeed checkpoint; run it to gather the weights first"),
    ("global_step*", "belongs to a DeepSpeed checkpoint; gather the weights with zero_to_fp32.py first"),
    ("*_model_states.pt", "belongs to a DeepSpeed checkpoint; gather the weights with zero_to_fp32.py first"),
    ("*.distcp", "belongs to an FSDP checkpoint; merge it first (accelerate merge-weights)"),
    ("pytorch_model_fsdp*", "belongs to an FSDP checkpoint; merge it first (accelerate merge-weights)"),
)

# Weights that no loader reads.
MISNAMED = (
    ("*.safetensors", "is under a name that no loader looks for; name it model.safetensors or restore the index"),
    ("*.bin", "is under a name that no loader looks for; name it pytorch_model.bin or restore the index"),
)

# Files of a training that are no weights.
TRAINING_FILES = ("training_args.bin", "optimizer.bin", "scheduler.bin", "scaler.bin")

_DELTA = "-delta-"

_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json")


def refuse_files(path: Path, names: Collection[str], kinds: Sequence[tuple[str, str]]) -> None:
    """Raise CheckpointError where one of *names* is of one of *kinds*, a table above."""
    for pattern, what in kinds:
        for name in sorted(names):
            if fnmatchcase(name, pattern) and name not in TRAINING_FILES:
                raise CheckpointError(f"{path / name}: {what}")


def refuse_delta(path: Path) -> None:
    """Raise CheckpointError where *path* has the name of a delta: only the name tells a delta."""
    if _DELTA in path.resolve().name:
        raise CheckpointError(
            f"{path}: is named as a delta is; apply it to its base model first (python -m llava.model.apply_delta), "
            "or rename the directory where it is whole"
        )


def refuse_delta_name(out: Path) -> None:
    """Raise UsageError where the output directory *out* has the name of a delta."""
    if _DELTA in out.absolute().name:
        raise UsageError(f"{out}: would be taken for a delta by its name; choose one without {_DELTA}")


def refuse_quantised(path: Path, names: Collection[str], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the checkpoint *path*, whose config.json is *config*, holds quantised weights."""
    remedy = "convert the checkpoint that they were made from, then quantise the result"
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        quantization = part.get("quantization_config")
        if quantization:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise CheckpointError(
                f"{path / 'config.json'}: the weights are quantised{f' ({shown(method)})' if method else ''}; {remedy}"
            )
    for name in _QUANTIZATION_FILES:
        if name in names:
            raise CheckpointError(f"{path / name}: the weights are quantised; {remedy}")


def refuse_weights_elsewhere(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where config.json names the file of the weights, as transformers 5 allows."""
    if config.get("transformers_weights"):
        raise CheckpointError(
            f"{path / 'config.json'}: transformers_weights names {shown(config['transformers_weights'])}, which other "
            "loaders do not read; name that file model.safetensors and remove the entry"
        )


def refuse_model_type(model_type: object, where: str) -> None:
    """Raise CheckpointError where *model_type*, from the file *where*, is one that cannot be converted."""
    if isinstance(model_type, str) and model_type in MODEL_TYPES:
        raise CheckpointError(f"{where}: model_type {model_type!r} {MODEL_TYPES[model_type]}")
