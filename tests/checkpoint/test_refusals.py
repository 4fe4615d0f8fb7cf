"""What is known and cannot be converted is refused by its name, with the way out, and nothing is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.command_line import run_here
from tests.support.disk import snapshot
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

Spoil = Callable[[Path], object]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

SPEC = Spec(num_layers=2, num_kv_heads=2, heads_per_group=2, hidden_size=8, text_model="qwen2")
LAYER = "language_model.model.layers.1.self_attn."
Q_PROJ, WEIGHTS, CONFIG = LAYER + "q_proj.weight", "model.safetensors", "config.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [2]}}))
    return path


# --- ways to spoil a checkpoint; each gives a function of its directory -------------------------------------------


def config_says(**changes: object) -> Spoil:
    def spoil(source: Path) -> None:
        config = json.loads((source / CONFIG).read_text())
        (source / CONFIG).write_text(json.dumps(config | changes))

    return spoil


def text_config_says(**changes: object) -> Spoil:
    def spoil(source: Path) -> None:
        config = json.loads((source / CONFIG).read_text())
        config["text_config"] |= changes
        (source / CONFIG).write_text(json.dumps(config))

    return spoil


def beside_the_weights(*names: str) -> Spoil:
    """There are other files as well; a name with a slash at its end is a directory's."""

    def spoil(source: Path) -> None:
        for name in names:
            (source / name).mkdir() if name.endswith("/") else (source / name).write_bytes(b"content")

    return spoil


def instead_of_weights(*names: str) -> Spoil:
    def spoil(source: Path) -> None:
        (source / WEIGHTS).unlink()
        beside_the_weights(*names)(source)

    return spoil


def nothing_but(*names: str) -> Spoil:
    def spoil(source: Path) -> None:
        shutil.rmtree(source)
        source.mkdir()
        beside_the_weights(*names)(source)

    return spoil


def weights(change: Callable[[Tensors], Any]) -> Spoil:
    def spoil(source: Path) -> None:
        tensors = read_safetensors(source / WEIGHTS)
        change(tensors)
        write_safetensors(source / WEIGHTS, tensors)

    return spoil


def without(*parts: str) -> Spoil:
    """The tensors whose names have one of *parts* are missing."""
    return weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if any(p in name for p in parts)])


def stored_as(dtype: str, item: int) -> Spoil:
    def store(tensors: Tensors) -> None:
        _, shape, _ = tensors[Q_PROJ]
        tensors[Q_PROJ] = (dtype, shape, bytes(item * int(np.prod(shape))))

    return weights(store)


def with_fused_projections(tensors: Tensors) -> None:
    parts = [tensors[f"{LAYER}{projection}_proj.weight"] for projection in "qkv"]
    shape = (sum(part[1][0] for part in parts), SPEC.hidden_size)
    tensors[LAYER + "qkv_proj.weight"] = ("F16", shape, b"".join(part[2] for part in parts))


def named_otherwise(old: str, new: str) -> Spoil:
    def rename(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[name.replace(old, new)] = tensors.pop(name)

    return weights(rename)


def index_of_shards(*present: str) -> Spoil:
    """The index names three shards, of which only those *present* are there."""

    def spoil(source: Path) -> None:
        names = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
        tensors = read_safetensors(source / WEIGHTS)
        weight_map = {name: names[number % 3] for number, name in enumerate(tensors)}
        for shard in present:
            write_safetensors(source / shard, {n: tensors[n] for n, held_by in weight_map.items() if held_by == shard})
        (source / WEIGHTS).unlink()
        (source / (WEIGHTS + ".index.json")).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return spoil


# --- what is refused ------------------------------------------------------------------------------------------

MPT = "is MPT, which stock LLaVA cannot run any more; use a checkpoint with a Llama, Mistral or Qwen2 language model"
INTERNLM2 = (
    "is InternLM2, whose wqkv interleaves the heads of a kv group; save it with Llama's names (split wqkv) first"
)
TOWER = "is a vision tower alone; give the directory of the whole LLaVA"
MOE = "is a mixture of experts, which is not supported; use a dense checkpoint"
MERGE = "; merge it into its base model first (scripts/merge_lora_weights.py of LLaVA), then convert the merged"
LORA, REST = f"is a LoRA adapter{MERGE}", f"is the rest of a LoRA training{MERGE}"
PROJECTOR = "holds the projector alone; give the directory of the whole LLaVA that it was trained into"
QUANTISED = "convert the checkpoint that they were made from, then quantise the result"
DEEPSPEED, FSDP = "belongs to a DeepSpeed checkpoint; ", "belongs to an FSDP checkpoint; merge it first"
MISNAMED = "is under a name that no loader looks for; "
INCOMPLETE = "its weights are incomplete"
BITSANDBYTES = {"load_in_4bit": True, "quant_method": "bitsandbytes"}

# (what it is, how a checkpoint becomes that, the file that is named or "" for the directory, what is said)
CASES: list[tuple[str, Spoil, str, str]] = [
    # Architectures.
    ("MPT", config_says(model_type="llava_mpt"), CONFIG, f"model_type 'llava_mpt' {MPT}"),
    ("MPT in text_config", text_config_says(model_type="mpt"), CONFIG, f"model_type 'mpt' {MPT}"),
    ("InternLM2", text_config_says(model_type="internlm2"), CONFIG, f"model_type 'internlm2' {INTERNLM2}"),
    ("InternVL", config_says(model_type="internvl_chat"), CONFIG, f"model_type 'internvl_chat' {INTERNLM2}"),
    ("LLaVA on Mixtral", config_says(model_type="llava_mixtral"), CONFIG, f"model_type 'llava_mixtral' {MOE}"),
    ("Mixtral in text_config", text_config_says(model_type="mixtral"), CONFIG, f"model_type 'mixtral' {MOE}"),
    ("Qwen2 of experts", text_config_says(model_type="qwen2_moe"), CONFIG, f"model_type 'qwen2_moe' {MOE}"),
    ("CLIP", config_says(model_type="clip"), CONFIG, f"model_type 'clip' {TOWER}"),
    ("CLIP's vision tower", config_says(model_type="clip_vision_model"), CONFIG, TOWER),
    ("SigLIP's vision tower", config_says(model_type="siglip_vision_model"), CONFIG, TOWER),
    ("another model", config_says(model_type="gpt2"), CONFIG, "check that this is the checkpoint you mean"),
    ("no model_type", config_says(model_type=None), CONFIG, "check that this is the checkpoint you mean"),
    ("another language model", text_config_says(model_type="gemma"), CONFIG, "is not supported; use a checkpoint with"),
    ("no text_config", config_says(text_config=None), CONFIG, "has no text_config, as llava has; restore the file"),
    # Adapters and parts.
    ("a LoRA's config", beside_the_weights("adapter_config.json"), "adapter_config.json", LORA),
    ("a LoRA in safetensors", instead_of_weights("adapter_model.safetensors"), "adapter_model.safetensors", LORA),
    ("a LoRA in bin", instead_of_weights("adapter_model.bin"), "adapter_model.bin", LORA),
    ("a LoRA beside weights", beside_the_weights("adapter_model.bin"), "adapter_model.bin", LORA),
    ("a LoRA alone", nothing_but("adapter_config.json", "adapter_model.bin"), "adapter_config.json", LORA),
    ("the rest of a LoRA", instead_of_weights("non_lora_trainables.bin"), "non_lora_trainables.bin", REST),
    ("the rest beside weights", beside_the_weights("non_lora_trainables.bin"), "non_lora_trainables.bin", REST),
    ("a projector", instead_of_weights("mm_projector.bin"), "mm_projector.bin", PROJECTOR),
    ("a projector without config", nothing_but("mm_projector.bin"), "mm_projector.bin", PROJECTOR),
    # Quantised weights.
    *(
        (f"{how} in {where}", says(quantization_config={"quant_method": how}), CONFIG, f"({how!r}); {QUANTISED}")
        for how in ("bitsandbytes", "gptq", "awq", "fp8")
        for where, says in (("config", config_says), ("text_config", text_config_says))
    ),
    ("an unnamed method", config_says(quantization_config={"bits": 4}), CONFIG, f"are quantised; {QUANTISED}"),
    ("AutoGPTQ", beside_the_weights("quantize_config.json"), "quantize_config.json", QUANTISED),
    ("AutoAWQ", beside_the_weights("quant_config.json"), "quant_config.json", QUANTISED),
    ("fp8 attention", stored_as("F8_E4M3", 1), WEIGHTS, f"{Q_PROJ} is stored as F8_E4M3, and only F32, F16, BF16 can"),
    ("int8 attention", stored_as("I8", 1), WEIGHTS, "can be rewritten; dequantise or cast it first"),
    ("float64 attention", stored_as("F64", 8), WEIGHTS, "can be rewritten; dequantise or cast it first"),
    # Other formats.
    ("GGUF", instead_of_weights("llava-q4_k.gguf"), "llava-q4_k.gguf", "is GGUF; convert the original checkpoint"),
    ("GGUF alone", nothing_but("llava-q4_k.gguf"), "llava-q4_k.gguf", "is GGUF; convert the original checkpoint"),
    ("GGML", instead_of_weights("llava.ggml"), "llava.ggml", "is GGML; convert the original checkpoint instead"),
    ("ONNX", instead_of_weights("model.onnx"), "model.onnx", "is ONNX; convert the original checkpoint instead"),
    ("Flax", instead_of_weights("flax_model.msgpack"), "flax_model.msgpack", "load it with from_flax=True and save it"),
    (
        "Flax in shards",
        instead_of_weights("flax_model-00001-of-00002.msgpack"),
        "flax_model-00001-of-00002.msgpack",
        "is a Flax checkpoint; load it with from_flax=True and save it as safetensors first",
    ),
    ("TensorFlow", instead_of_weights("tf_model.h5"), "tf_model.h5", "load it with from_tf=True and save it"),
    ("the authors' format", nothing_but("consolidated.00.pth", "params.json"), "consolidated.00.pth", "convert it to"),
    ("DeepSpeed's script", instead_of_weights("zero_to_fp32.py"), "zero_to_fp32.py", f"{DEEPSPEED}run it to gather"),
    ("DeepSpeed's states", instead_of_weights("global_step500/"), "global_step500", f"{DEEPSPEED}gather the weights"),
    ("a part of DeepSpeed's", nothing_but("mp_rank_00_model_states.pt"), "mp_rank_00_model_states.pt", DEEPSPEED),
    ("FSDP", instead_of_weights("pytorch_model_fsdp.bin"), "pytorch_model_fsdp.bin", FSDP),
    ("FSDP in parts", instead_of_weights("pytorch_model_fsdp_0/"), "pytorch_model_fsdp_0", FSDP),
    ("a part of FSDP's", nothing_but("__0_0.distcp", ".metadata"), "__0_0.distcp", FSDP),
    # Names.
    ("safetensors misnamed", instead_of_weights("llava.safetensors"), "llava.safetensors", f"{MISNAMED}name it"),
    ("bin misnamed", instead_of_weights("llava.bin"), "llava.bin", f"{MISNAMED}name it pytorch_model.bin"),
    (
        "shards without index",
        instead_of_weights("model-00001-of-00002.safetensors"),
        "model-00001-of-00002.safetensors",
        f"{MISNAMED}name it model.safetensors or restore the index",
    ),
    ("no weights", instead_of_weights(), "", "; download the weights as well"),
    ("a training's rest", instead_of_weights("training_args.bin"), "", "; download the weights as well"),
    ("nothing at all", nothing_but(), "", "has no config.json; give the directory of a checkpoint"),
    # Incomplete or contradictory.
    ("one shard of three", index_of_shards("model-00001-of-00003.safetensors"), "", "which is missing; download it"),
    ("no shard of three", index_of_shards(), "", "names model-00001-of-00003.safetensors, which is missing; download"),
    ("no projection", without("1.self_attn.k_proj.weight"), "", f"layer 1 has no k_proj.weight; {INCOMPLETE}"),
    ("a layer less", without("layers.1."), "", f"layer 1 has no q_proj.weight; {INCOMPLETE}"),
    ("the tower alone in the file", without("language_model"), "", f"layer 0 has no q_proj.weight; {INCOMPLETE}"),
    ("a bias missing", without("layers.0.self_attn.k_proj.bias"), "", "layer 0 has biases for q, v of q, k, v, o; its"),
    ("a bias alone", without("k_proj.bias", "v_proj.bias"), "", f"biases for q of q, k, v, o; {INCOMPLETE}: download"),
    ("no bias in a layer", without("layers.1.self_attn.q_proj.bias", "1.self_attn.k_proj.bias", "1.self_attn.v_proj.b"),
     "", f"layer 1 has biases for none of q, k, v, o, layer 0 for q, k, v; {INCOMPLETE}"),
    ("q both alone and fused", weights(with_fused_projections), "", "loaders differ in which they read; save"),
    ("the original layout's names", named_otherwise("language_model.model.", "model."), "", "or of another layout"),
    ("xtuner's names", named_otherwise("language_model.", "llm.base_model."), "", "incomplete or of another layout"),
    ("other heads", text_config_says(num_attention_heads=8), WEIGHTS, "asks for [32, 8]; mend the config"),
    ("other kv heads", text_config_says(num_key_value_heads=4), WEIGHTS, "k_proj.weight has shape [8, 8], but config"),
    ("another width", text_config_says(hidden_size=16), WEIGHTS, "; mend the config or the weights"),
    ("a layer more", text_config_says(num_hidden_layers=3), "", f"layer 2 has no q_proj.weight; {INCOMPLETE}"),
    ("heads that are no number", text_config_says(num_attention_heads="4"), CONFIG, "not a positive integer; mend"),
]  # fmt: skip


def test_there_are_enough_cases_and_each_has_a_name_of_its_own() -> None:
    assert len(CASES) >= 30
    assert len({name for name, *_ in CASES}) == len(CASES)


@pytest.mark.parametrize(("spoil", "file", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_it_is_refused_by_its_name_with_the_way_out(
    source: Path, mask: Path, tmp_path: Path, spoil: Spoil, file: str, message: str
) -> None:
    spoil(source)
    before = snapshot(tmp_path)
    outcome = run_here(source, tmp_path / "out", "--mask", mask)
    assert outcome.exit_code == 2, outcome.stderr
    assert outcome.stdout == ""
    assert len(outcome.stderr.splitlines()) == 1
    assert re.match(re.escape(str(source / file)) + ("[:/]" if not file else ":"), outcome.error)
    assert message in outcome.error
    assert "; " in outcome.error  # after it stands what to do
    assert snapshot(tmp_path) == before


def test_a_delta_is_refused_by_its_directorys_name(source: Path, mask: Path, tmp_path: Path) -> None:
    delta = source.rename(tmp_path / "llava-7b-delta-v0")
    before = snapshot(tmp_path)
    outcome = run_here(delta, tmp_path / "out", "--mask", mask)
    assert outcome.exit_code == 2
    assert outcome.error == (
        f"{delta}: is named as a delta is; apply it to its base model first (python -m llava.model.apply_delta), "
        "or rename the directory where it is whole"
    )
    assert snapshot(tmp_path) == before


def test_a_delta_is_refused_by_another_way_to_it_too(source: Path, mask: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(source.rename(tmp_path / "llava-7b-delta-v0"))
    outcome = run_here(tmp_path / "link", tmp_path / "out", "--mask", mask)
    assert outcome.exit_code == 2
    assert "is named as a delta is" in outcome.error


def test_an_out_that_would_be_taken_for_a_delta_is_refused(source: Path, mask: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    outcome = run_here(source, tmp_path / "llava-delta-v1", "--mask", mask)
    assert outcome.exit_code == 2
    assert outcome.error == (
        f"{tmp_path / 'llava-delta-v1'}: would be taken for a delta by its name; choose one without -delta-"
    )
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["training_args.bin", "mm_projector.bin", "zero_to_fp32.py"])
def test_what_training_leaves_beside_whole_weights_is_no_reason_to_refuse(
    source: Path, mask: Path, tmp_path: Path, name: str
) -> None:
    (source / name).write_bytes(b"content")
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    assert (tmp_path / "out" / name).read_bytes() == b"content"


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_the_other_commands_refuse_by_name_too(source: Path, command: str) -> None:
    config_says(model_type="llava_mpt")(source)
    outcome = run_here(command, *[source] * (2 if command == "verify" else 1))
    assert outcome.exit_code == 2
    assert MPT in outcome.error
