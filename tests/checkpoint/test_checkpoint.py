"""What a directory must be to be opened as a checkpoint, and what is then known of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s4convert.checkpoint import Checkpoint, Geometry
from s4convert.errors import CheckpointError, StorageError
from tests.support.synthetic import (
    HUGGING_FACE,
    ORIGINAL,
    Spec,
    read_safetensors,
    shapes,
    write_checkpoint,
    write_safetensors,
)

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
LAYERS = "language_model.model.layers."

# Four heads on two kv heads; every size another number.
GROUPED = Spec(num_layers=2, num_kv_heads=2, heads_per_group=2, head_dim=3, hidden_size=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A well-formed checkpoint in one file."""
    return write_checkpoint(tmp_path / "checkpoint", GROUPED)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A well-formed checkpoint in two shards."""
    return write_checkpoint(tmp_path / "sharded", Spec(num_shards=2))


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def edit_tensors(path: Path, edit: Callable[[Tensors], object]) -> None:
    tensors = read_safetensors(path)
    edit(tensors)
    write_safetensors(path, tensors)


def rename_tensors(path: Path, old: str, new: str) -> None:
    tensors = {name.replace(old, new): tensor for name, tensor in read_safetensors(path).items()}
    write_safetensors(path, tensors)


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        Checkpoint.open(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# --- opening ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [HUGGING_FACE, ORIGINAL])
@pytest.mark.parametrize("text_model", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_every_layout_and_language_model_is_opened(
    tmp_path: Path, layout: str, text_model: str, num_shards: int
) -> None:
    spec = Spec(heads_per_group=2, head_dim=3, layout=layout, text_model=text_model, num_shards=num_shards)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", spec))
    assert (checkpoint.family.lineage, checkpoint.language_model.model_type) == (layout, text_model)
    assert checkpoint.geometry == Geometry(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=3, hidden_size=8)
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == shapes(spec)
    assert len(checkpoint.shards) == num_shards
    assert checkpoint.manifest is None


@pytest.mark.parametrize("given", ["missing", "file", "empty"])
def test_a_directory_without_a_config_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "file").write_text("{}")
    (tmp_path / "empty").mkdir()
    message = "has no config.json" if given == "empty" else "no such directory"
    assert_refused(tmp_path / given, message)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"model_type": "llava", "model_type": "llava"}', "'model_type' stands twice"),
        ("[]", "is not a JSON object"),
        ("null", "is not a JSON object"),
        ("{}", "model_type None is not one this tool knows"),
        ('{"model_type": "gpt2"}', "model_type 'gpt2' is not one this tool knows"),
        ('{"model_type": "llava_mpt"}', "model_type 'llava_mpt' is MPT"),
        ('{"model_type": ["llava"]}', "model_type ['llava'] is not one this tool knows"),
        ('{"model_type": "llava", "text_config": null}', "has no text_config"),
        ('{"model_type": "llava", "text_config": []}', "has no text_config"),
        ('{"model_type": "llava", "text_config": {"model_type": "gpt2"}}', "language model 'gpt2' is not supported"),
        ('{"model_type": "llava", "text_config": {"model_type": null}}', "language model None is not supported"),
        ('{"model_type": "llava", "quantization_config": {"bits": 4}}', "the weights are quantised"),
        ('{"model_type": "llava_llama", "quantization_config": {"bits": 4}}', "the weights are quantised"),
    ],
)
def test_a_config_of_no_supported_model_is_refused(path: Path, config: str, message: str) -> None:
    (path / "config.json").write_text(config)
    assert_refused(path, message)


def test_a_text_config_without_a_model_type_is_llama(path: Path) -> None:
    edit_json(path / "config.json", lambda config: config["text_config"].pop("model_type"))
    assert Checkpoint.open(path).language_model.model_type == "llama"


def test_an_old_llava_config_without_text_config_is_the_original_layout(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoint", Spec(layout=ORIGINAL))
    edit_json(path / "config.json", lambda config: config.update(model_type="llava"))
    checkpoint = Checkpoint.open(path)
    assert (checkpoint.family.lineage, checkpoint.language_model.model_type) == (ORIGINAL, "llama")
    assert len(checkpoint.layers) == 2


@pytest.mark.parametrize(
    "prefix", ["language_model.model.", "model.language_model.", "model.language_model.model.", "language_model."]
)
def test_every_prefix_of_the_hugging_face_layout_is_known(path: Path, prefix: str) -> None:
    rename_tensors(path / WEIGHTS, "language_model.model.", prefix)
    checkpoint = Checkpoint.open(path)
    assert [len(layer) for layer in checkpoint.layers] == [9, 9]
    assert checkpoint.embedding.name == prefix + "embed_tokens.weight"


def test_weights_of_the_other_layout_are_refused(path: Path) -> None:
    rename_tensors(path / WEIGHTS, "language_model.model.", "model.")
    assert_refused(path, "layer 0 has no q_proj.weight")


# --- shards and index ---------------------------------------------------------------------------------------


def test_a_checkpoint_without_weights_is_refused(path: Path) -> None:
    (path / WEIGHTS).unlink()
    assert_refused(path, f"has none of {WEIGHTS}, {INDEX}, pytorch_model.bin")


def test_a_single_file_beside_an_index_is_refused(sharded: Path, path: Path) -> None:
    (path / WEIGHTS).rename(sharded / WEIGHTS)
    assert_refused(sharded, f"has both {WEIGHTS} and {INDEX}")


def test_a_malformed_shard_is_refused_by_its_name(sharded: Path) -> None:
    with (sharded / SHARDS[1]).open("ab") as file:
        file.write(b"x")
    assert_refused(sharded, f"{SHARDS[1]}: malformed safetensors header")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": null}', "has no weight_map"),
        ('{"weight_map": ["model.safetensors"]}', "has no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' stands twice"),
    ],
)
def test_a_malformed_index_is_refused(sharded: Path, index: str, message: str) -> None:
    (sharded / INDEX).write_text(index)
    assert_refused(sharded, message)


@pytest.mark.parametrize(
    "shard",
    [
        *("../model.safetensors", "/model.safetensors", "sub/model.safetensors", "./model.safetensors"),
        *("model.safetensors/", "..", ".", "model\0.safetensors", 1, None, ["model.safetensors"]),
    ],
)
def test_an_index_that_names_anything_but_a_plain_file_is_refused(sharded: Path, shard: object) -> None:
    # The file is there, so that only its name can be at fault.
    (sharded / "sub").mkdir()
    for copy in (sharded.parent / WEIGHTS, sharded / "sub" / WEIGHTS):
        copy.write_bytes((sharded / SHARDS[0]).read_bytes())
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], shard)))
    assert_refused(sharded, "which is not a plain file name")


def test_an_index_that_names_an_absolute_path_is_refused(sharded: Path) -> None:
    shard = str(sharded / SHARDS[0])
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(index["weight_map"], shard)))
    assert_refused(sharded, "which is not a plain file name")


def test_an_index_with_an_empty_name_is_refused(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(a=""))
    with pytest.raises(CheckpointError):
        Checkpoint.open(sharded)


def test_a_missing_shard_is_refused(sharded: Path) -> None:
    (sharded / SHARDS[1]).unlink()
    assert_refused(sharded, f"names {SHARDS[1]}, which is missing")


def test_a_tensor_that_the_index_does_not_know_is_refused(sharded: Path) -> None:
    edit_tensors(sharded / SHARDS[0], lambda tensors: tensors.update(extra=("U8", (1,), b"x")))
    assert_refused(sharded, f"extra stands in {SHARDS[0]}, but the index has it in no file")


def test_a_tensor_in_another_shard_than_the_index_says_is_refused(sharded: Path) -> None:
    name = next(iter(read_safetensors(sharded / SHARDS[0])))
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update({name: SHARDS[1]}))
    assert_refused(sharded, f"{name} stands in {SHARDS[0]}, but the index has it in {SHARDS[1]}")


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    name, tensor = next(iter(read_safetensors(sharded / SHARDS[0]).items()))
    edit_tensors(sharded / SHARDS[1], lambda tensors: tensors.update({name: tensor}))
    assert_refused(sharded, f"{name} stands in {SHARDS[1]}, but the index has it in {SHARDS[0]}")


def test_a_tensor_in_no_shard_is_refused(sharded: Path) -> None:
    edit_json(sharded / INDEX, lambda index: index["weight_map"].update(extra=SHARDS[0]))
    assert_refused(sharded, f"extra is not in {SHARDS[0]}")


# --- geometry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 7}, "has shape [12, 8], but config.json asks for [12, 7]"),
        ({"num_attention_heads": 2}, "has shape [12, 8], but config.json asks for [6, 8]"),
        ({"num_attention_heads": 8}, "has shape [12, 8], but config.json asks for [24, 8]"),
        ({"num_key_value_heads": 1}, "has shape [6, 8], but config.json asks for [3, 8]"),
        ({"num_key_value_heads": 4}, "has shape [6, 8], but config.json asks for [12, 8]"),
        ({"head_dim": 2}, "has shape [12, 8], but config.json asks for [8, 8]"),
        ({"head_dim": None}, "has shape [12, 8], but config.json asks for [8, 8]"),
        ({"num_hidden_layers": 3}, "layer 2 has no q_proj.weight"),
        ({"num_hidden_layers": 1}, "is beyond the 1 layers that config.json states"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3 kv heads evenly"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, not a positive integer"),
    ],
)
def test_a_config_that_contradicts_the_weights_is_refused(path: Path, change: dict[str, Any], message: str) -> None:
    edit_json(path / "config.json", lambda config: config["text_config"].update(change))
    assert_refused(path, message)


def test_heads_and_widths_that_fit_only_in_their_product_are_told_apart_by_the_kv_heads(path: Path) -> None:
    change = {"num_attention_heads": 12, "head_dim": 1}
    edit_json(path / "config.json", lambda config: config["text_config"].update(change))
    assert_refused(path, "k_proj.weight has shape [6, 8], but config.json asks for [2, 8]")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("o_proj.weight", (12, 8)), ("q_proj.weight", (96,)), ("v_proj.bias", (7,)), ("o_proj.bias", (12,))],
)
def test_a_projection_of_another_shape_is_refused(path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensor = ("F16", shape, bytes(2 * int(np.prod(shape))))
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.update({f"{LAYERS}1.self_attn.{name}": tensor}))
    assert_refused(path, f"{LAYERS}1.self_attn.{name} has shape {list(shape)}, but config.json asks for")


@pytest.mark.parametrize("projection", ["q", "k", "v", "o"])
def test_a_layer_without_one_of_its_projections_is_refused(path: Path, projection: str) -> None:
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.pop(f"{LAYERS}1.self_attn.{projection}_proj.weight"))
    assert_refused(path, f"layer 1 has no {projection}_proj.weight")


@pytest.mark.parametrize("dtype", ["I8", "F8_E4M3", "F64"])
def test_a_projection_of_another_dtype_is_refused(path: Path, dtype: str) -> None:
    name = LAYERS + "0.self_attn.k_proj.weight"
    tensor = (dtype, (6, 8), bytes(6 * 8 * (8 if dtype == "F64" else 1)))
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.update({name: tensor}))
    assert_refused(path, f"{name} is stored as {dtype}, and only F32, F16, BF16 can be rewritten")


def test_other_tensors_may_have_any_dtype_but_are_not_computed_with(path: Path) -> None:
    name = LAYERS + "0.mlp.down_proj.weight"
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.update({name: ("I8", (8, 12), bytes(96))}))
    checkpoint = Checkpoint.open(path)
    assert checkpoint.tensors[name].dtype == "I8"
    with pytest.raises(CheckpointError, match="is stored as I8; only F32, F16, BF16 can be computed with"):
        checkpoint.read_rows(checkpoint.tensors[name])


def test_one_tensor_under_two_names_is_refused(path: Path) -> None:
    name = LAYERS + "0.self_attn.q_proj.weight"
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.update({"model." + name: tensors[name]}))
    assert_refused(path, "are the same tensor under two names")


# --- tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [HUGGING_FACE, ORIGINAL])
def test_keys_of_a_tower_are_in_no_decoder_layer(tmp_path: Path, layout: str) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(layout=layout)))
    tower = [name for name in checkpoint.tensors if "vision_tower" in name]
    assert any(".layers.0.self_attn.q_proj.weight" in name for name in tower)
    in_layers = {tensor.name for layer in checkpoint.layers for tensor in layer.values()}
    assert not in_layers & set(tower)
    assert len(in_layers) == 2 * 9


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.language_model.model.layers.0.self_attn.q_proj.weight",
        "xlanguage_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.model.encoder.layers.0.self_attn.q_proj.weight",
        "language_model.model.layers.0",
        "language_model.model.layers.x.self_attn.q_proj.weight",
        "language_model.model.layers.-1.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
    ],
)
def test_keys_that_only_look_like_a_decoder_layer_are_none(path: Path, name: str) -> None:
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.update({name: ("U8", (1,), b"x")}))
    checkpoint = Checkpoint.open(path)
    assert name in checkpoint.tensors
    assert checkpoint.family.layer_key(name) is None
    assert [len(layer) for layer in checkpoint.layers] == [9, 9]


def test_projections_are_found_by_layer_and_kind(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(text_model="qwen2", num_shards=3)))
    for layer in (0, 1):
        for projection in "qkvo":
            for kind in ("weight", "bias"):
                found = checkpoint.projection(layer, projection, kind)
                name = f"{LAYERS}{layer}.self_attn.{projection}_proj.{kind}"
                assert (found.tensor.name if found else None) == (None if (projection, kind) == ("o", "bias") else name)


def test_rows_are_read_as_float32(path: Path) -> None:
    name = LAYERS + "1.self_attn.q_proj.weight"
    expected = np.frombuffer(read_safetensors(path / WEIGHTS)[name][2], "<f2").reshape(12, 8).astype(np.float32)
    checkpoint = Checkpoint.open(path)
    rows = checkpoint.read_rows(checkpoint.tensors[name])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(checkpoint.read_rows(checkpoint.tensors[name], 3, 2), expected[3:5])
    np.testing.assert_array_equal(checkpoint.read_rows(checkpoint.tensors[name], 10), expected[10:])


def test_a_checkpoint_without_embeddings_says_so(path: Path) -> None:
    edit_tensors(path / WEIGHTS, lambda tensors: tensors.pop("language_model.model.embed_tokens.weight"))
    with pytest.raises(CheckpointError, match="has no token embeddings"):
        _ = Checkpoint.open(path).embedding


# --- other files --------------------------------------------------------------------------------------------


def test_weights_that_no_loader_reads_are_left_behind_and_other_files_are_sidecars(sharded: Path) -> None:
    left_behind = {
        *("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "model.gguf"),
        *("consolidated.safetensors", "consolidated.00.pth", "optimizer.pt", "old/model.safetensors"),
        *("old/model.safetensors.index.json", "model.fp16.safetensors.index.json", "model.pt"),
    }
    sidecars = {"training_args.bin", "tokenizer.model", "README.md", "assets/index.json", ".keep", "mm.bin"}
    sidecars |= {".hidden/settings.json", "assets/.keep"}
    of_tools = {".git/model.safetensors", ".cache/huggingface/x.lock", "assets/.git", ".gitattributes"}
    for name in left_behind | sidecars | of_tools:
        (sharded / name).parent.mkdir(parents=True, exist_ok=True)
        (sharded / name).write_bytes(b"x")
    checkpoint = Checkpoint.open(sharded)
    assert set(checkpoint.left_behind) == left_behind
    assert set(checkpoint.passed_by) == {".git", ".cache", "assets/.git", ".gitattributes"}
    written = {"config.json", "generation_config.json", INDEX, "assets/notes.txt"}
    assert set(checkpoint.sidecars) == sidecars | written
    assert set(checkpoint.shards) == set(SHARDS)
    assert set(checkpoint.stamps) == {*SHARDS, *checkpoint.sidecars}


def test_a_file_has_one_role_only(sharded: Path) -> None:
    checkpoint = Checkpoint.open(sharded)
    names = [*checkpoint.shards, *checkpoint.sidecars, *checkpoint.left_behind]
    assert sorted(names) == sorted(p.relative_to(sharded).as_posix() for p in sharded.rglob("*") if p.is_file())


def test_each_directory_counts_once_and_links_to_it_and_empty_ones_are_passed_by(sharded: Path) -> None:
    (sharded / "a-link").symlink_to("assets")
    (sharded / "assets" / "up").symlink_to("..")
    (sharded / "assets" / "link.txt").symlink_to("notes.txt")
    (sharded / "empty" / "inner").mkdir(parents=True)
    checkpoint = Checkpoint.open(sharded)
    assert set(checkpoint.passed_by) == {"a-link", "assets/up", "empty/inner"}
    assert {"assets/notes.txt", "assets/link.txt"} <= set(checkpoint.sidecars)


def test_a_tower_in_a_directory_of_its_own_is_a_part_and_an_earlier_state_is_left_behind(sharded: Path) -> None:
    for folder, model_type in (("visual_encoder", "clip_vision_model"), ("checkpoint-500", "llava")):
        (sharded / folder).mkdir()
        (sharded / folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
        (sharded / folder / "model.safetensors").write_bytes(b"x")
    checkpoint = Checkpoint.open(sharded)
    assert "visual_encoder/model.safetensors" in checkpoint.sidecars
    assert checkpoint.left_behind == ("checkpoint-500/model.safetensors",)


def test_a_pipe_among_the_sidecars_is_refused_and_not_waited_for(path: Path) -> None:
    os.mkfifo(path / "pipe.txt")
    with pytest.raises(CheckpointError, match=r"pipe\.txt: is not a regular file"):
        Checkpoint.open(path)


def test_the_manifest_of_a_conversion_is_no_sidecar(path: Path) -> None:
    (path / "s4convert.json").write_text('{"format": "s4convert/1"}')
    checkpoint = Checkpoint.open(path)
    assert "s4convert.json" not in (*checkpoint.sidecars, *checkpoint.left_behind)
    assert checkpoint.manifest == {"format": "s4convert/1"}


def test_a_sidecar_that_cannot_be_read_is_an_error_of_the_disk(path: Path) -> None:
    (path / "README.md").symlink_to("nowhere")
    with pytest.raises(StorageError, match=r"README\.md: cannot be read"):
        Checkpoint.open(path)


@pytest.mark.parametrize("name", [WEIGHTS, "generation_config.json"])
def test_a_file_that_changed_since_is_noticed(path: Path, name: str) -> None:
    checkpoint = Checkpoint.open(path)
    checkpoint.check_unchanged()
    before = (path / name).stat()
    with (path / name).open("r+b") as file:
        file.write(b"x")
    os.utime(path / name, ns=(before.st_atime_ns, before.st_mtime_ns))  # nobody can set the ctime
    with pytest.raises(StorageError, match=f"{name}: changed during the run"):
        checkpoint.check_unchanged()


@pytest.mark.parametrize("name", [WEIGHTS, "generation_config.json"])
def test_a_file_that_was_exchanged_for_its_copy_is_noticed(path: Path, name: str) -> None:
    checkpoint = Checkpoint.open(path)
    copy = path.parent / "copy"
    copy.write_bytes((path / name).read_bytes())
    status = (path / name).stat()
    os.utime(copy, ns=(status.st_atime_ns, status.st_mtime_ns))
    copy.replace(path / name)
    with pytest.raises(StorageError, match=f"{name}: changed during the run"):
        checkpoint.check_unchanged()


def test_a_file_that_vanished_since_is_noticed(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    (path / "generation_config.json").unlink()
    with pytest.raises(StorageError, match=r"generation_config\.json: vanished during the run"):
        checkpoint.check_unchanged()


@pytest.mark.parametrize("name", ["notes.txt", "assets/more.txt", ".env", "unpruned.gguf", "new/empty/"])
def test_what_appeared_since_is_noticed(path: Path, name: str) -> None:
    checkpoint = Checkpoint.open(path)
    new = path / name
    if name.endswith("/"):
        new.mkdir(parents=True)
    else:
        new.write_text("x")
    with pytest.raises(StorageError, match=f"{new}: appeared during the run"):
        checkpoint.check_unchanged()


def test_a_shard_that_became_shorter_is_noticed_when_it_is_read(path: Path) -> None:
    checkpoint = Checkpoint.open(path)
    last = max(checkpoint.tensors.values(), key=lambda tensor: tensor.entry.end)
    os.truncate(path / WEIGHTS, last.entry.end - 1)
    with pytest.raises(StorageError, match="became shorter while it was read"):
        checkpoint.read_rows(last)
