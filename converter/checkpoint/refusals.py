"""What is known and cannot be converted: each by its name, with the way out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UsageError

_MPT = "is MPT, which stock LLaVA cannot run any more; use a checkpoint with a Llama, Mistral or Qwen2 language model"
_INTERNLM2 = (
    "is InternLM2, whose wqkv interleaves the heads of a kv group; save it with Llama's names (split wqkv) first"
)
_TOWER = "is a vision tower alone; give the directory of the whole LLaVA"
_MOE = "is a mixture of experts, which is not supported; use a dense checkpoint"

# By the model_type of config.json or of its text_config.
MODEL_TYPES: Mapping[str, str] = {
    **dict.fromkeys(("llava_mpt", "mpt"), _MPT),
    **dict.fromkeys(("internlm2", "internlm", "internlmxcomposer2", "internvl_chat"), _INTERNLM2),
    **dict.fromkeys(("clip", "clip_vision_model", "siglip", "siglip_vision_model"), _TOWER),
    **dict.fromkeys(("llava_mixtral", "mixtral", "llava_qwen_moe", "qwen2_moe", "qwen3_moe"), _MOE),
}

# By the pattern of a file's name. The first whose file is there is told.
_ADAPTERS = (
    ("adapter_config.json", "is a LoRA adapter"),
    ("adapter_model.*", "is a LoRA adapter"),
    ("non_lora_trainables.bin", "is the rest of a LoRA training"),
)
_MERGE = (
    "merge it into its base model first (scripts/merge_lora_weights.py of LLaVA), then convert the merged checkpoint"
)

# What stands in the place of weights that can be read.
_OTHER_FORMATS = (
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

_MISNAMED = (
    ("*.safetensors", "is under a name that no loader looks for; name it model.safetensors or restore the index"),
    ("*.bin", "is under a name that no loader looks for; name it pytorch_model.bin or restore the index"),
)

# What training leaves beside weights.
TRAINING_FILES = ("training_args.bin", "optimizer.bin", "scheduler.bin", "scaler.bin")

_DELTA = "-delta-"

_QUANTIZATION_FILES = ("quantize_config.json", "quant_config.json")


def refuse_adapter(path: Path, names: Collection[str]) -> None:
    """Raise CheckpointError where *names* in *path* are an adapter's, also beside weights: it changes them.

    Here and below, *names* are what stands in *path*, a directory or a repository on the Hub.
    """
    _refuse_files(path, names, tuple((pattern, f"{what}; {_MERGE}") for pattern, what in _ADAPTERS))


def refuse_delta(path: Path) -> None:
    """Raise CheckpointError where *path* is named as deltas are: nothing else tells them apart."""
    if _DELTA in path.resolve().name:
        raise CheckpointError(
            f"{path}: is named as a delta is; apply it to its base model first (python -m llava.model.apply_delta), "
            "or rename the directory where it is whole"
        )


def refuse_delta_name(out: Path) -> None:
    """Raise UsageError where *out*, whose weights will be whole, would be named as deltas are."""
    if _DELTA in out.absolute().name:
        raise UsageError(f"{out}: would be taken for a delta by its name; choose one without {_DELTA}")


def refuse_quantised(path: Path, names: Collection[str], config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where the checkpoint *path* with the config.json *config* holds quantised weights."""
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        quantization = part.get("quantization_config")
        if quantization:
            method = quantization.get("quant_method") if isinstance(quantization, dict) else None
            raise CheckpointError(
                f"{path / 'config.json'}: the weights are quantised{f' ({method})' if method else ''}; "
                "convert the checkpoint that they were made from, then quantise the result"
            )
    for name in _QUANTIZATION_FILES:
        if name in names:
            raise CheckpointError(
                f"{path / name}: the weights are quantised; "
                "convert the checkpoint that they were made from, then quantise the result"
            )


def refuse_weights_elsewhere(path: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where config.json sends loaders to weights under another name, as transformers 5 allows."""
    if config.get("transformers_weights"):
        raise CheckpointError(
            f"{path / 'config.json'}: transformers_weights names {config['transformers_weights']!r}, which other "
            "loaders do not read; name that file model.safetensors and remove the entry"
        )


def refuse_model_type(model_type: object, where: str) -> None:
    """Raise CheckpointError where *model_type*, as the file *where* has it, is known and not supported."""
    if isinstance(model_type, str) and model_type in MODEL_TYPES:
        raise CheckpointError(f"{where}: model_type {model_type!r} {MODEL_TYPES[model_type]}")


def refuse_other_formats(path: Path, names: Collection[str]) -> None:
    """Raise CheckpointError where *names* in *path* are weights in a format that is not read."""
    _refuse_files(path, names, _OTHER_FORMATS)


def refuse_misnamed_weights(path: Path, names: Collection[str]) -> None:
    """Raise CheckpointError where *names* in *path*, which has no weights that are loaded, are others."""
    _refuse_files(path, names, _MISNAMED)


def _refuse_files(path: Path, names: Collection[str], kinds: Sequence[tuple[str, str]]) -> None:
    for pattern, what in kinds:
        for name in sorted(names):
            if fnmatchcase(name, pattern) and name not in TRAINING_FILES:
                raise CheckpointError(f"{path / name}: {what}")
