"""A checkpoint of ``.bin`` files becomes the safetensors checkpoint that its safetensors twin becomes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import s4convert
from benchmarks.memory import peak_bytes
from s4convert.checkpoint import MANIFEST_FILE, Checkpoint
from s4convert.output.card import CARD_FILES
from tests.conftest import MINI_LLAVA
from tests.support import seams
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests, hidden_siblings, snapshot
from tests.support.environments import in_the_newest_environment, with_a_newer_torch
from tests.support.run_time_hooks import decoder_layers
from tests.support.synthetic import (
    HUGGING_FACE,
    ORIGINAL,
    Spec,
    config,
    read_safetensors,
    shapes,
    write_checkpoint,
    write_safetensors,
)
from tests.verify.test_sabotage import ChangeEdits, ChangeFiles, flip_bit, scales_twice

Tensors = dict[str, torch.Tensor]
Stored = dict[str, tuple[str, tuple[int, ...], bytes]]

SPEC = Spec(num_layers=3, num_kv_heads=2, heads_per_group=2, hidden_size=16, text_model="qwen2")
PRUNED = {"0": [0, 1], "2": [1, 2]}
INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
O_PROJ = "language_model.model.layers.2.self_attn.o_proj.weight"
DOWN_PROJ = "language_model.model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": PRUNED}))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint in two ``.bin`` shards."""
    return write_torch_checkpoint(tmp_path / "in", replace(SPEC, num_shards=2))


def write_torch_checkpoint(path: Path, spec: Spec) -> Path:
    return save_as_torch(write_checkpoint(path, spec))


def save_as_torch(path: Path, arrange: Callable[[Tensors], Tensors] = dict) -> Path:
    """Put ``.bin`` files, and an index of them, in the place of the safetensors files in the directory *path*."""
    for shard in sorted(path.glob("*.safetensors")):
        torch.save(arrange(load_file(shard)), path / f"pytorch_{shard.stem}.bin")
        shard.unlink()
    if (path / INDEX).exists():
        text = (path / INDEX).read_text().replace('"model-', '"pytorch_model-').replace('.safetensors"', '.bin"')
        (path / TORCH_INDEX).write_text(text)
        (path / INDEX).unlink()
    return path


def stored_in(directory: Path) -> Stored:
    """Every tensor of a checkpoint's safetensors files."""
    return {
        name: stored
        for shard in sorted(directory.glob("*.safetensors"))
        for name, stored in read_safetensors(shard).items()
    }


def convert(source: Path, out: Path, mask: Path, **options: Any) -> Path:
    s4convert.convert(source, out, mask, check_behaviour=False, **options)
    return out


def assert_becomes_what_its_twin_becomes(
    spec: Spec, tmp_path: Path, mask: Path, arrange: Callable[[Tensors], Tensors] = dict
) -> None:
    twin = write_checkpoint(tmp_path / "twin", spec)
    source = save_as_torch(Path(shutil.copytree(twin, tmp_path / "in")), arrange)
    name = {"llama": "llava", "mistral": "llava-mistral", "qwen2": "llava-qwen"}[spec.text_model]
    expected = stored_in(convert(twin, tmp_path / f"{name}-of-the-twin", mask))
    before = digests(source)
    found = stored_in(convert(source, tmp_path / name, mask))
    assert found == expected
    assert set(found) == set(shapes(spec))
    assert digests(source) == before


# --- the weights ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_shards", [1, 3], ids=["one file", "three shards"])
@pytest.mark.parametrize("layout", [HUGGING_FACE, ORIGINAL])
@pytest.mark.parametrize(("text_model", "dtype"), [("llama", "F16"), ("mistral", "F32"), ("qwen2", "BF16")])
def test_every_tensor_is_that_of_the_safetensors_twin(
    tmp_path: Path, mask: Path, layout: str, text_model: str, dtype: str, num_shards: int
) -> None:
    spec = replace(SPEC, layout=layout, text_model=text_model, dtype=dtype, num_shards=num_shards)
    assert_becomes_what_its_twin_becomes(spec, tmp_path, mask)


def as_views_of_one_storage(tensors: Tensors) -> Tensors:
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    return {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, tensors.items(), strict=True)}


def column_by_column(tensors: Tensors) -> Tensors:
    return {name: tensor.t().contiguous().t() for name, tensor in tensors.items()}


def with_gaps(tensors: Tensors) -> Tensors:
    return {name: tensor.repeat_interleave(3, -1)[..., 1::3] for name, tensor in tensors.items()}


def as_parameters(tensors: Tensors) -> Tensors:
    return {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}


def each_in_its_own_way(tensors: Tensors) -> Tensors:
    ways = [as_views_of_one_storage(tensors), column_by_column(tensors), with_gaps(tensors), tensors]
    return {name: ways[number % len(ways)][name] for number, name in enumerate(tensors)}


@pytest.mark.parametrize(
    "arrange", [as_views_of_one_storage, column_by_column, with_gaps, as_parameters, each_in_its_own_way]
)
def test_however_the_tensors_lie_in_their_storages_the_result_is_the_same(
    tmp_path: Path, mask: Path, arrange: Callable[[Tensors], Tensors]
) -> None:
    assert_becomes_what_its_twin_becomes(replace(SPEC, num_shards=2), tmp_path, mask, arrange)


def test_layers_that_share_their_weights_are_edited_apart(tmp_path: Path, mask: Path) -> None:
    def share(tensors: Tensors) -> Tensors:
        return {name: tensors[name.replace("layers.2", "layers.1")] for name in tensors}

    twin = write_checkpoint(tmp_path / "twin", SPEC)
    save_file(
        {name: tensor.clone() for name, tensor in share(load_file(twin / "model.safetensors")).items()},
        twin / "model.safetensors",
        {"format": "pt"},
    )
    source = save_as_torch(Path(shutil.copytree(twin, tmp_path / "in")), share)
    entries = {entry.name: entry for shard in Checkpoint.open(source).shards.values() for entry in shard.entries}
    assert entries[O_PROJ].begin == entries[O_PROJ.replace("layers.2", "layers.1")].begin
    expected = stored_in(convert(twin, tmp_path / "of-the-twin", mask))
    assert stored_in(convert(source, tmp_path / "out", mask)) == expected
    assert expected[O_PROJ] != expected[O_PROJ.replace("layers.2", "layers.1")]


@with_a_newer_torch
def test_other_dtypes_beside_the_weights_travel_and_every_tensor_is_aligned(tmp_path: Path, mask: Path) -> None:
    others = {
        "flag": torch.tensor(True),
        "flags": torch.tensor([True, False, True]),
        "small": torch.arange(5, dtype=torch.int8),
        "narrow": torch.ones(3).to(torch.float8_e5m2),
        "position_ids": torch.arange(3),
        "double": torch.rand(1, dtype=torch.float64),
        "single": torch.rand(3),
        "empty": torch.empty(0, 4),
    }
    source = save_as_torch(write_checkpoint(tmp_path / "in", SPEC), lambda tensors: others | tensors)
    shard = convert(source, tmp_path / "out", mask) / "model.safetensors"
    loaded = load_file(shard)
    for name, tensor in others.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].tolist() == tensor.tolist()
    item = {"F64": 8, "I64": 8, "F32": 4, "F16": 2}
    for entry in Checkpoint.open(tmp_path / "out").shards["model.safetensors"].entries:
        assert entry.begin % item.get(entry.dtype, 1) == 0, entry.name


def test_the_bytes_do_not_depend_on_the_number_of_threads(source: Path, tmp_path: Path, mask: Path) -> None:
    outs = [convert(source, tmp_path / f"out-{jobs}", mask, jobs=jobs) for jobs in (1, 8)]
    assert digests(outs[0]) == digests(outs[1])


# --- the files ------------------------------------------------------------------------------------------------


def test_out_holds_safetensors_an_index_and_the_other_files(source: Path, tmp_path: Path, mask: Path) -> None:
    (source / "training_args.bin").write_bytes(b"no weights")
    out = convert(source, tmp_path / "out", mask)
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}
    others = {"config.json", "generation_config.json", "assets/notes.txt", "training_args.bin"}
    assert set(digests(out)) == shards | others | {INDEX, MANIFEST_FILE, *CARD_FILES}
    assert {name: digests(out)[name] for name in others} == {name: digests(source)[name] for name in others}
    stated = json.loads((out / MANIFEST_FILE).read_text())["files"]
    assert {name: file["sha256"] for name, file in stated.items()} == {
        name: sha256 for name, sha256 in digests(out).items() if name != MANIFEST_FILE
    }


def test_the_index_names_the_shard_of_every_tensor_and_the_size_of_all(
    source: Path, tmp_path: Path, mask: Path
) -> None:
    out = convert(source, tmp_path / "out", mask)
    index = json.loads((out / INDEX).read_text())
    held = {name: shard.name for shard in out.glob("*.safetensors") for name in read_safetensors(shard)}
    size = sum(len(data) for _, _, data in stored_in(out).values())
    assert index == {"metadata": {"total_size": size}, "weight_map": held}


def test_one_file_becomes_one_file_without_an_index(tmp_path: Path, mask: Path) -> None:
    out = convert(write_torch_checkpoint(tmp_path / "in", SPEC), tmp_path / "out", mask)
    assert sorted(path.name for path in out.glob("*model*")) == ["model.safetensors"]


def test_stock_safetensors_reads_every_shard(source: Path, tmp_path: Path, mask: Path) -> None:
    out = convert(source, tmp_path / "out", mask)
    original = {name: tensor for path in source.glob("*.bin") for name, tensor in torch.load(path).items()}
    converted = {name: tensor for path in out.glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert converted.keys() == original.keys()
    touched = {name for name in converted if not torch.equal(converted[name], original[name])}
    assert touched
    assert all(name.startswith(("language_model.model.layers.0", "language_model.model.layers.2")) for name in touched)


def test_safetensors_win_over_bin_files_which_are_left_behind(tmp_path: Path, mask: Path) -> None:
    path = write_checkpoint(tmp_path / "in", SPEC)
    stale = write_torch_checkpoint(tmp_path / "stale", replace(SPEC, num_shards=2, seed=1))
    for file in stale.glob("pytorch_model*"):
        shutil.copy(file, path)
    outcome = run_here(path, tmp_path / "out", "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    left = {TORCH_INDEX, "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}
    for name in left:
        assert f"{name}: left behind, it may hold unpruned weights" in outcome.stderr
    assert set(digests(tmp_path / "out")) == set(digests(path)) - left | {MANIFEST_FILE, *CARD_FILES}
    shutil.copy(path / "pytorch_model-00001-of-00002.bin", tmp_path / "out")
    refused = run_here("verify", path, tmp_path / "out")
    assert refused.exit_code == 1
    assert "pytorch_model-00001-of-00002.bin: is no part of a conversion" in refused.error


# --- the size of shards ---------------------------------------------------------------------------------------


@with_a_newer_torch
def test_shards_are_no_larger_than_asked_for_but_for_a_tensor_that_is(tmp_path: Path, mask: Path) -> None:
    source = write_torch_checkpoint(tmp_path / "in", replace(SPEC, vocab_size=100))
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--no-verify", "--shard-size", "2KB")
    assert outcome.exit_code == 0, outcome.stderr
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [shard.name for shard in shards] == [
        f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)
    ]
    contents = [read_safetensors(shard) for shard in shards]
    sizes = [sum(len(data) for _, _, data in content.values()) for content in contents]
    large = [content for content, size in zip(contents, sizes, strict=True) if size > 2000]
    assert [list(content) for content in large] == [
        ["language_model.model.embed_tokens.weight"],
        ["language_model.lm_head.weight"],
    ]
    for size, following in zip(sizes, contents[1:], strict=False):
        if size <= 1000:  # then there was a reason
            assert size + max(len(data) for _, _, data in following.values()) > 2000
    assert stored_in(tmp_path / "out") == stored_in(convert(source, tmp_path / "whole", mask))
    assert run_here("verify", source, tmp_path / "out", "--mask", mask).exit_code == 0


def test_shards_are_put_together_where_the_size_allows(source: Path, tmp_path: Path, mask: Path) -> None:
    out = convert(source, tmp_path / "out", mask, shard_size=10**9)
    assert sorted(path.name for path in out.glob("model*")) == ["model.safetensors"]
    assert stored_in(out) == stored_in(convert(source, tmp_path / "others", mask))


def test_the_smallest_size_gives_every_tensor_a_shard(source: Path, tmp_path: Path, mask: Path) -> None:
    out = convert(source, tmp_path / "out", mask, shard_size=1)
    assert len(list(out.glob("*.safetensors"))) == len(shapes(SPEC))


def test_a_size_of_shards_is_refused_for_safetensors(tmp_path: Path, mask: Path) -> None:
    path = write_checkpoint(tmp_path / "in", SPEC)
    outcome = run_here(path, tmp_path / "out", "--mask", mask, "--shard-size", "5GB")
    assert outcome.exit_code == 2
    assert outcome.error == f"{path}: its shards are safetensors and stay as they are; leave --shard-size out"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "size",
    ["", "5", "GB", "0MB", "0.0001KB", "-1MB", "5TB", "5GiB", "five GB", "1e3KB", "5 GB", "5GB5", "\u0665GB", "1,5GB"],
)
def test_what_is_no_size_is_refused(source: Path, tmp_path: Path, mask: Path, size: str) -> None:
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--shard-size", size)
    assert outcome.exit_code == 2
    assert f"{size!r} is not a size such as 500MB or 5GB" in outcome.error
    assert not (tmp_path / "out").exists()


# --- the commands ---------------------------------------------------------------------------------------------


def test_verify_compares_a_conversion_with_its_bin_files(source: Path, tmp_path: Path, mask: Path) -> None:
    out = convert(source, tmp_path / "out", mask)
    outcome = run_here("verify", source, out, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["structure"]["edited_tensors"] == 14
    shard = out / "model-00001-of-00002.safetensors"
    flip_bit(shard, 8 * shard.stat().st_size - 1)
    outcome = run_here("verify", source, out)
    assert outcome.exit_code == 1
    assert "is not" in outcome.error


def test_inspect_shows_what_bin_files_hold(source: Path) -> None:
    outcome = run_here("inspect", source, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    shown = json.loads(outcome.stdout)
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    assert shown["shards"] == {name: (source / name).stat().st_size for name in names}
    assert (shown["num_layers"], shown["num_heads"], shown["num_kv_heads"]) == (3, 4, 2)
    assert shown["dtype_bytes"] == {"F16": sum(2 * torch.Size(shape).numel() for shape in shapes(SPEC).values())}
    assert (shown["silent_heads"], shown["left_behind"]) == ({}, [])


def test_a_dry_run_tells_the_files_that_will_be(source: Path, tmp_path: Path, mask: Path) -> None:
    before = snapshot(tmp_path)
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--dry-run", "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert snapshot(tmp_path) == before
    planned = json.loads(outcome.stdout)["files"]
    out = convert(source, tmp_path / "out", mask)
    assert planned == {name: (out / name).stat().st_size for name in set(digests(out)) - {MANIFEST_FILE, *CARD_FILES}}


def test_an_old_torch_is_warned_of_and_used(
    source: Path, tmp_path: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0
    assert outcome.stderr.count("s4convert: torch 2.9.1+cpu reads .bin and .pt files with known security holes") == 1


# --- the mini LLaVA, with its hidden states ---------------------------------------------------------------------


def test_the_mini_llava_in_bin_files_is_verified_and_loads_in_stock_transformers(
    tmp_path: Path, mini_llava: Path, mini_mask_file: Path
) -> None:
    from transformers import LlavaForConditionalGeneration

    outcome = run_here(save_as_torch(mini_llava), tmp_path / "out", "--mask", mini_mask_file, "--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert stored_in(tmp_path / "out") == stored_in(convert(MINI_LLAVA, tmp_path / "of-the-twin", mini_mask_file))
    model, loading = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert {name: list(keys) for name, keys in loading.items() if keys} == {}
    loaded = decoder_layers(model)[2].self_attn.o_proj.weight
    _, shape, data = stored_in(tmp_path / "out")[O_PROJ]
    assert torch.equal(loaded, torch.frombuffer(bytearray(data), dtype=torch.float16).reshape(shape))


# --- sabotage ---------------------------------------------------------------------------------------------------


def flips_a_bit_of_an_unedited_tensor(staged: Path) -> None:
    stored = Checkpoint.open(staged).tensors[DOWN_PROJ]
    flip_bit(staged / stored.shard, 8 * stored.entry.begin + 77)


def flips_a_bit_of_the_last_tensor(staged: Path) -> None:
    shard = staged / "model-00002-of-00002.safetensors"
    flip_bit(shard, 8 * shard.stat().st_size - 1)


def change_shard(staged: Path, name: str, change: Callable[[Stored], object]) -> None:
    """Write the shard that holds the tensor *name* anew, its tensors as *change* leaves them."""
    shard = staged / Checkpoint.open(staged).tensors[name].shard
    tensors = read_safetensors(shard)
    change(tensors)
    write_safetensors(shard, tensors)


def change_index(staged: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((staged / INDEX).read_text())
    change(index)
    (staged / INDEX).write_text(json.dumps(index))


def leaves_a_tensor_out(staged: Path) -> None:
    change_shard(staged, DOWN_PROJ, lambda tensors: tensors.pop(DOWN_PROJ))
    change_index(staged, lambda index: index["weight_map"].pop(DOWN_PROJ))


def adds_a_tensor(staged: Path) -> None:
    change_shard(staged, DOWN_PROJ, lambda tensors: tensors.update(more=("F16", (1,), b"\0\0")))
    change_index(staged, lambda index: index["weight_map"].update(more=index["weight_map"][DOWN_PROJ]))


def states_another_dtype(staged: Path) -> None:
    change_shard(staged, DOWN_PROJ, lambda tensors: tensors.update({DOWN_PROJ: ("BF16", *tensors[DOWN_PROJ][1:])}))


def states_another_shape(staged: Path) -> None:
    def turn(tensors: Stored) -> None:
        dtype, (rows, columns), data = tensors[DOWN_PROJ]
        tensors[DOWN_PROJ] = (dtype, (columns, rows), data)

    change_shard(staged, DOWN_PROJ, turn)


def swaps_two_halves_of_a_tensor(staged: Path) -> None:
    def swap(tensors: Stored) -> None:
        dtype, shape, data = tensors[DOWN_PROJ]
        tensors[DOWN_PROJ] = (dtype, shape, data[len(data) // 2 :] + data[: len(data) // 2])

    change_shard(staged, DOWN_PROJ, swap)


def forgets_the_format(staged: Path) -> None:
    shard = staged / "model-00001-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b'{"__metadata__":{"format":"pt"},', b"{" + b" " * 31, 1))


def forgets_the_metadata_of_the_index(staged: Path) -> None:
    change_index(staged, lambda index: index.pop("metadata"))


def drops_a_shard(staged: Path) -> None:
    (staged / "model-00002-of-00002.safetensors").unlink()


def drops_a_sidecar(staged: Path) -> None:
    (staged / "generation_config.json").unlink()


def adds_the_original_weights(staged: Path) -> None:
    torch.save({"unpruned": torch.ones(1)}, staged / "pytorch_model.bin")


def assert_not_verified(outcome: Outcome, out: Path, message: str) -> None:
    assert outcome.exit_code == 1, outcome.stderr
    assert message in outcome.error
    assert outcome.stdout == ""
    assert not out.exists()
    assert hidden_siblings(out) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flips_a_bit_of_an_unedited_tensor, f"{DOWN_PROJ} is not the original's"),
        (flips_a_bit_of_the_last_tensor, "is not the original's"),
        (leaves_a_tensor_out, f"has no {DOWN_PROJ}; convert again"),
        (adds_a_tensor, "has another tensor, more; convert again"),
        (states_another_dtype, f"{DOWN_PROJ} is BF16 [16, 12], not the original's F16 [16, 12]"),
        (states_another_shape, f"{DOWN_PROJ} is F16 [12, 16], not the original's F16 [16, 12]"),
        (swaps_two_halves_of_a_tensor, f"{DOWN_PROJ} is not the original's"),
        (forgets_the_format, "its metadata lacks the format pt; convert again"),
        (forgets_the_metadata_of_the_index, "has no metadata, without which stock loaders fail"),
        (drops_a_shard, "names model-00002-of-00002.safetensors, which is missing"),
        (drops_a_sidecar, "generation_config.json: is missing; convert again"),
        (adds_the_original_weights, "pytorch_model.bin: is no part of a conversion and may hold unpruned weights"),
    ],
)
def test_rebuilt_files_that_are_not_the_plans_are_refused(
    source: Path, tmp_path: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, change: ChangeFiles, message: str
) -> None:
    seams.after_staging(monkeypatch, change)
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--no-verify")
    assert_not_verified(outcome, tmp_path / "out", message)


def skips_everything_that_is_not_contiguous(edit: Any) -> list[Any]:
    return [edit] if edit.tensor.is_contiguous else []


@pytest.mark.parametrize("change", [scales_twice, skips_everything_that_is_not_contiguous])
def test_a_plan_that_is_not_the_masks_is_refused(
    tmp_path: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, change: ChangeEdits
) -> None:
    source = save_as_torch(write_checkpoint(tmp_path / "in", SPEC), each_in_its_own_way)
    seams.change_edits(monkeypatch, change)
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--no-verify")
    assert_not_verified(outcome, tmp_path / "out", "is not what the mask asks for; convert again")


# --- what is refused --------------------------------------------------------------------------------------------


def name_a_shard_outside(source: Path) -> None:
    shutil.copy(source / "pytorch_model-00001-of-00002.bin", source.parent / "elsewhere.bin")
    edit_torch_index(source, lambda weights: weights.update({DOWN_PROJ: "../elsewhere.bin"}))


def name_a_shard_by_its_path(source: Path) -> None:
    edit_torch_index(source, lambda weights: weights.update({DOWN_PROJ: str(source / "pytorch_model-1.bin")}))


def lose_a_shard(source: Path) -> None:
    (source / "pytorch_model-00002-of-00002.bin").unlink()


def lose_the_index(source: Path) -> None:
    (source / TORCH_INDEX).unlink()


def map_a_tensor_to_the_other_shard(source: Path) -> None:
    def swap(weights: dict[str, str]) -> None:
        weights[DOWN_PROJ] = next(shard for shard in set(weights.values()) if shard != weights[DOWN_PROJ])

    edit_torch_index(source, swap)


def add_the_single_file(source: Path) -> None:
    shutil.copy(source / "pytorch_model-00001-of-00002.bin", source / "pytorch_model.bin")


def make_a_weight_not_a_number(source: Path) -> None:
    for path in source.glob("*.bin"):
        tensors = torch.load(path)
        if O_PROJ in tensors:
            tensors[O_PROJ][0, 0] = torch.nan
            torch.save(tensors, path)


def edit_torch_index(source: Path, edit: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((source / TORCH_INDEX).read_text())
    edit(index["weight_map"])
    (source / TORCH_INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (name_a_shard_outside, "is mapped to '../elsewhere.bin', which is not a plain file name"),
        (name_a_shard_by_its_path, "which is not a plain file name"),
        (lose_a_shard, "names pytorch_model-00002-of-00002.bin, which is missing; download it again"),
        (lose_the_index, "is under a name that no loader looks for; name it pytorch_model.bin or restore the index"),
        (map_a_tensor_to_the_other_shard, "rebuild the index"),
        (add_the_single_file, f"has both pytorch_model.bin and {TORCH_INDEX}, and loaders differ in which they read"),
        (make_a_weight_not_a_number, f"{O_PROJ} (layer 2) holds NaN or infinity; mend the checkpoint first"),
    ],
)
def test_bin_files_that_cannot_be_converted_are_refused(
    source: Path, tmp_path: Path, mask: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(source)
    before = snapshot(tmp_path)
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--no-verify")
    assert outcome.exit_code == 2, outcome.stderr
    assert message in outcome.error
    assert snapshot(tmp_path) == before


# --- memory -----------------------------------------------------------------------------------------------------


def write_even_weights(path: Path, spec: Spec) -> Path:
    """A checkpoint of *spec* in one ``.bin``, whose weights are all 1: random ones would take their time."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config(spec)))
    torch.save({n: torch.ones(s, dtype=torch.float16) for n, s in shapes(spec).items()}, path / "pytorch_model.bin")
    return path


@pytest.fixture
def sizes(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A checkpoint of 10 MB, and one of 170 MB in tensors of 8 MB."""
    large = Spec(num_layers=5, num_kv_heads=16, head_dim=128, hidden_size=2048, intermediate_size=64, vocab_size=2048)
    small = replace(large, head_dim=16, hidden_size=512, num_layers=3)
    paths = write_even_weights(tmp_path / "small", small), write_even_weights(tmp_path / "large", large)
    yield paths
    for path in paths:
        shutil.rmtree(path)


@in_the_newest_environment
def test_memory_does_not_grow_with_the_file(sizes: tuple[Path, Path], tmp_path: Path, mask: Path) -> None:
    bytes_small, bytes_large = ((path / "pytorch_model.bin").stat().st_size for path in sizes)
    assert bytes_small < 11e6
    assert bytes_large > 160e6
    small, large = (
        peak_bytes(str(path), f"{path}-out", "--mask", str(mask), "--no-verify", "--jobs", "2") for path in sizes
    )
    shutil.rmtree(tmp_path / "large-out")
    assert large - small < 60e6
