"""Verification catches a broken writer: whatever goes wrong between plan and disk, OUT does not appear."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from s4convert import Checkpoint, convert, verify_conversion
from s4convert.compensation import HeadMix
from s4convert.compensation.fitting import known_before_fitting
from s4convert.errors import VerificationError
from s4convert.mask.files import load_mask
from s4convert.output.card import CARD_FILES
from s4convert.rewrite.plan import ColumnEdit, Edit, RowEdit
from s4convert.verify.behaviour import check_behaviour
from s4convert.verify.claim import Claim
from s4convert.verify.probe import Probe, make_probe
from tests.conftest import MINI_LLAVA
from tests.support import seams
from tests.support.command_line import run_here
from tests.support.disk import hidden_siblings
from tests.support.environments import in_the_newest_environment
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = in_the_newest_environment

PRUNED = {2: [1, 4], 5: [3]}
HEAD_DIM, NUM_HEADS = 16, 8
UNTOUCHED = "language_model.model.layers.3.mlp.down_proj.weight"

ChangeEdits = Callable[[Edit], list[Edit]]
ChangeFiles = Callable[[Path], None]


def write_mask(directory: Path) -> Path:
    path = directory / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {str(layer): heads for layer, heads in PRUNED.items()}}))
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return write_mask(tmp_path)


# --- a writer that does something else than the plan, or a plan that is not the mask's -----------------------


def skips_a_layer(edit: Edit) -> list[Edit]:
    return [] if edit.layer == 5 else [edit]


def skips_the_output_projections(edit: Edit) -> list[Edit]:
    return [] if edit.projection == "o" else [edit]


def skips_one_row_edit(edit: Edit) -> list[Edit]:
    return [] if (edit.layer, edit.projection) == (5, "v") else [edit]


def skips_everything(edit: Edit) -> list[Edit]:
    return []


def zeroes_the_rows_of_the_next_head(edit: Edit) -> list[Edit]:
    return [replace(edit, first=edit.first + HEAD_DIM)] if isinstance(edit, RowEdit) else [edit]


def zeroes_one_row_too_many(edit: Edit) -> list[Edit]:
    return [replace(edit, count=edit.count + 1)] if isinstance(edit, RowEdit) else [edit]


def with_mix(edit: Edit, change: Callable[[HeadMix], HeadMix]) -> list[Edit]:
    """*edit*, if it is one of columns, with another mix."""
    return [replace(edit, mix=change(edit.fitted))] if isinstance(edit, ColumnEdit) else [edit]


def zeroes_the_columns_of_the_next_head(edit: Edit) -> list[Edit]:
    return with_mix(edit, lambda mix: replace(mix, pruned=tuple((head + 1) % NUM_HEADS for head in mix.pruned)))


def scales_twice(edit: Edit) -> list[Edit]:
    return with_mix(edit, lambda mix: replace(mix, factors=mix.factors**2))


def does_not_scale(edit: Edit) -> list[Edit]:
    return with_mix(edit, lambda mix: replace(mix, factors=np.sign(mix.factors)))


def flips_one_bit_of_an_untouched_tensor(staged: Path) -> None:
    stored = Checkpoint.open(staged).tensors[UNTOUCHED]
    flip_bit(staged / stored.shard, 8 * stored.entry.begin + 4321)


def flips_one_bit_of_the_vision_tower(staged: Path) -> None:
    checkpoint = Checkpoint.open(staged)
    stored = next(tensor for name, tensor in checkpoint.tensors.items() if name.startswith("vision_tower."))
    flip_bit(staged / stored.shard, 8 * stored.entry.end - 1)


def drops_a_sidecar(staged: Path) -> None:
    (staged / "preprocessor_config.json").unlink()


def drops_a_shard(staged: Path) -> None:
    (staged / "model-00002-of-00002.safetensors").unlink()


def cuts_a_shard_short(staged: Path) -> None:
    shard = staged / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-2])


def rewrites_the_config(staged: Path) -> None:
    config = json.loads((staged / "config.json").read_text())
    (staged / "config.json").write_text(json.dumps(config))


def changes_the_config_at_its_size(staged: Path) -> None:
    text = (staged / "config.json").read_text()
    (staged / "config.json").write_text(text.replace('"rms_norm_eps": 1e-05', '"rms_norm_eps": 1e-06'))


def change_header(staged: Path, old: bytes, new: bytes) -> None:
    """Put *new* in the place of *old* in the header of the shard that has it."""
    (shard,) = (shard for shard in staged.glob("*.safetensors") if old in shard.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(old, new, 1))


def states_another_dtype(staged: Path) -> None:
    change_header(staged, f'"{UNTOUCHED}":{{"dtype":"F16"'.encode(), f'"{UNTOUCHED}":{{"dtype":"I16"'.encode())


def swaps_two_tensors(staged: Path) -> None:
    up = UNTOUCHED.replace("down", "up").encode()
    gate = up.replace(b"up", b"gate")
    change_header(staged, up, b"<swapped>")
    change_header(staged, gate, up)
    change_header(staged, b"<swapped>", gate)


def says_other_metadata(staged: Path) -> None:
    for shard in staged.glob("*.safetensors"):
        shard.write_bytes(shard.read_bytes().replace(b'"format":"pt"', b'"format":"tf"'))


def adds_a_file(staged: Path) -> None:
    (staged / "model.safetensors.tmp").write_text("left by a writer")


def silences_with_minus_zero(staged: Path) -> None:
    def negate(columns: np.ndarray) -> None:
        columns[:, 3 * HEAD_DIM] = -0.0

    change_tensor(staged, "language_model.model.layers.5.self_attn.o_proj.weight", negate)


def flip_bit(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ (1 << bit % 8)]))


def change_tensor(directory: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Let *change* work on the stored float16 values of tensor *name*, in place."""
    stored = Checkpoint.open(directory).tensors[name]
    assert stored.dtype == "F16"
    values = np.memmap(directory / stored.shard, "<f2", "r+", offset=stored.entry.begin, shape=stored.shape)
    change(values)
    values.flush()


def assert_refused(mask: Path, out: Path, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        convert(MINI_LLAVA, out, mask, jobs=1)
    assert not out.exists()
    assert hidden_siblings(out) == []


def test_an_honest_writer_passes_the_checks_that_the_broken_ones_below_fail(mask: Path, tmp_path: Path) -> None:
    report = convert(MINI_LLAVA, tmp_path / "out", mask)
    assert report.behaviour is not None
    assert report.behaviour.probe == "3 text prompts, 2 image prompts"
    assert report.structure.edited_tensors == 8
    assert (tmp_path / "out" / "s4convert.json").is_file()
    assert hidden_siblings(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (skips_a_layer, "layers.5.self_attn.* of layer 5 is not what the mask asks for"),
        (skips_the_output_projections, "o_proj.weight of layer 2 is not what the mask asks for"),
        (skips_one_row_edit, "layers.5.self_attn.v_proj.weight of layer 5 is not what the mask asks for"),
        (skips_everything, "of layer 2 is not what the mask asks for"),
        (zeroes_the_rows_of_the_next_head, "[qkv]_proj.weight of layer 2 is not what the mask asks for"),
        (zeroes_one_row_too_many, "[qkv]_proj.weight of layer 2 is not what the mask asks for"),
        (zeroes_the_columns_of_the_next_head, "o_proj.weight of layer 2 is not what the mask asks for"),
        (scales_twice, "o_proj.weight of layer 2 is not what the mask asks for"),
        (does_not_scale, "o_proj.weight of layer 2 is not what the mask asks for"),
    ],
)
def test_a_plan_that_is_not_the_masks_is_refused(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: ChangeEdits, message: str
) -> None:
    seams.change_edits(monkeypatch, change)
    assert_refused(mask, tmp_path / "out", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flips_one_bit_of_an_untouched_tensor, f"{UNTOUCHED} is not the original's"),
        (flips_one_bit_of_the_vision_tower, "vision_tower.* is not the original's"),
        (drops_a_sidecar, "preprocessor_config.json: is missing"),
        (drops_a_shard, "model-00002-of-00002.safetensors, which is missing"),
        (cuts_a_shard_short, "model-00001-of-00002.safetensors: malformed safetensors header"),
        (rewrites_the_config, "config.json: its size is not the original's"),
        (changes_the_config_at_its_size, "config.json, byte .* is not the original's"),
        (states_another_dtype, rf"{UNTOUCHED} is I16 \[128, 344\], not the original's F16 \[128, 344\]"),
        (swaps_two_tensors, "layers.3.mlp.gate_proj.weight stands at byte [0-9]+, not the original's [0-9]+"),
        (says_other_metadata, "model-00001-of-00002.safetensors: byte [0-9]+ of its header is not the original's"),
        (adds_a_file, "model.safetensors.tmp: does not stand in the original"),
        (silences_with_minus_zero, "layers.5.self_attn.o_proj.weight of layer 5 is not what the mask asks for"),
    ],
)
def test_staged_files_that_are_not_the_plans_are_refused(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: ChangeFiles, message: str
) -> None:
    seams.after_staging(monkeypatch, change)
    assert_refused(mask, tmp_path / "out", message)


def test_a_writer_that_rounds_towards_zero_is_refused(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truncate(values: np.ndarray, dtype: str) -> bytes:
        rounded = values.astype("<f2")
        away = np.abs(rounded.astype(np.float32)) > np.abs(values)
        rounded[away] = np.nextafter(rounded[away], np.float16(0))
        return rounded.tobytes()

    seams.round_by(monkeypatch, truncate)
    assert_refused(mask, tmp_path / "out", "o_proj.weight of layer 2 is not what the mask asks for")


def test_a_writer_that_copies_from_the_wrong_place_is_refused(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range

    def misplaced(source: int, target: int, size: int, begin: int, at: int) -> int:
        return copy(source, target, size, max(0, begin - 2), at)

    monkeypatch.setattr(os, "copy_file_range", misplaced)
    assert_refused(mask, tmp_path / "out", "k_proj.weight of layer 2 is not what the mask asks for")


def test_the_command_line_ends_a_failed_verification_with_exit_code_1(
    mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.change_edits(monkeypatch, skips_a_layer)
    outcome = run_here(MINI_LLAVA, tmp_path / "out", "--mask", mask)
    assert outcome.exit_code == 1
    assert "of layer 5 is not what the mask asks for; convert again" in outcome.error
    assert outcome.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.json"]


# --- the hidden states alone, without the byte-by-byte check --------------------------------------------------


@pytest.fixture(scope="module")
def probe() -> Probe:
    return make_probe(Checkpoint.open(MINI_LLAVA))


@pytest.fixture(scope="module")
def converted_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted-once")
    convert(MINI_LLAVA, directory / "out", write_mask(directory), check_behaviour=False)
    return directory / "out"


@pytest.fixture
def converted(converted_once: Path, tmp_path: Path) -> Path:
    """A conversion that a test may do anything with."""
    return Path(shutil.copytree(converted_once, tmp_path / "converted"))


def projection(layer: int, name: str) -> str:
    return f"language_model.model.layers.{layer}.self_attn.{name}_proj.weight"


def original_values(name: str) -> np.ndarray:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    return checkpoint.read_rows(checkpoint.tensors[name])


def columns(head: int) -> slice:
    return slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)


def put_back(directory: Path, name: str) -> None:
    def restore(values: np.ndarray) -> None:
        values[:] = original_values(name)

    change_tensor(directory, name, restore)


def one_layer_is_the_originals(directory: Path) -> None:
    for name in "qkvo":
        put_back(directory, projection(5, name))


def every_file_is_the_originals(directory: Path) -> None:
    shutil.rmtree(directory)
    shutil.copytree(MINI_LLAVA, directory)


def another_head_is_silent(directory: Path) -> None:
    def swap(values: np.ndarray) -> None:
        factor = np.float32(NUM_HEADS / (NUM_HEADS - len(PRUNED[5])))
        values[:, columns(3)] = original_values(projection(5, "o"))[:, columns(3)] * factor
        values[:, columns(6)] = 0

    for name in "qkv":
        put_back(directory, projection(5, name))
    change_tensor(directory, projection(5, "o"), swap)


def only_query_rows_are_zero(directory: Path) -> None:
    def speak(values: np.ndarray) -> None:
        factor = np.float32(NUM_HEADS / (NUM_HEADS - len(PRUNED[5])))
        values[:] = original_values(projection(5, "o")) * factor

    for name in "kv":
        put_back(directory, projection(5, name))
    change_tensor(directory, projection(5, "o"), speak)


def one_layer_is_scaled_twice(directory: Path) -> None:
    def scale(values: np.ndarray) -> None:
        values *= np.float16(NUM_HEADS / (NUM_HEADS - len(PRUNED[2])))

    change_tensor(directory, projection(2, "o"), scale)


def one_layer_is_not_scaled(directory: Path) -> None:
    def unscale(values: np.ndarray) -> None:
        values /= np.float16(NUM_HEADS / (NUM_HEADS - len(PRUNED[2])))

    change_tensor(directory, projection(2, "o"), unscale)


def _lowest_bit_of_the_mlp(layer: int) -> ChangeFiles:
    def change(directory: Path) -> None:
        stored = Checkpoint.open(directory).tensors[f"language_model.model.layers.{layer}.mlp.down_proj.weight"]
        flip_bit(directory / stored.shard, 8 * stored.entry.begin)

    change.__name__ = f"lowest_bit_of_the_mlp_of_layer_{layer}"
    return change


def one_weight_is_infinite(directory: Path) -> None:
    def spoil(values: np.ndarray) -> None:
        values[0, 0] = np.inf

    change_tensor(directory, "language_model.model.layers.6.mlp.down_proj.weight", spoil)


def claim(converted: Path, mask: Path) -> Claim:
    """That *converted* is the mini LLaVA without the heads of *mask*, the others scaled."""
    original = Checkpoint.open(MINI_LLAVA)
    head_mask = load_mask(mask, original.geometry)
    return Claim(original, Checkpoint.open(converted), head_mask, known_before_fitting("scale", original, head_mask))


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_an_honest_conversion_passes_the_behaviour_check_alone(
    converted: Path, mask: Path, probe: Probe, device: str
) -> None:
    report = check_behaviour(claim(converted, mask), probe, device=device, advance=lambda _: None)
    assert [row.mean_abs_delta == 0 for row in report.layers] == [True, True] + [False] * 6


@pytest.mark.parametrize(
    ("sabotage", "message"),
    [
        pytest.param(one_layer_is_the_originals, "layer 5", id="a layer is skipped"),
        pytest.param(every_file_is_the_originals, "layer 2: pruning 2 heads changed nothing", id="no effect at all"),
        pytest.param(another_head_is_silent, "layer 5", id="the wrong head"),
        pytest.param(only_query_rows_are_zero, "layer 5", id="uniform attention is not silence"),
        pytest.param(one_layer_is_scaled_twice, "layer 2", id="scaled twice"),
        pytest.param(one_layer_is_not_scaled, "layer 2", id="not scaled"),
        pytest.param(_lowest_bit_of_the_mlp(0), "layer 0: .*the mask begins at layer 2", id="a bit before the mask"),
        pytest.param(_lowest_bit_of_the_mlp(3), "layer 3", id="a bit between the touched layers"),
        pytest.param(_lowest_bit_of_the_mlp(7), "layer 7", id="a bit after the touched layers"),
        pytest.param(one_weight_is_infinite, "layer 6: hidden states are not finite", id="infinity"),
    ],
)
def test_the_hidden_states_alone_tell_a_sabotaged_conversion(
    converted: Path, mask: Path, probe: Probe, sabotage: ChangeFiles, message: str
) -> None:
    sabotage(converted)
    with pytest.raises(VerificationError, match=message):
        check_behaviour(claim(converted, mask), probe, advance=lambda _: None)


# --- after the fact: what happened to a directory since it was converted ---------------------------------------


def edit_manifest(directory: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = directory / "s4convert.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def the_manifest_has_another_hash(directory: Path) -> None:
    edit_manifest(directory, lambda content: content["files"]["config.json"].update(sha256="0" * 64))


def the_manifest_has_another_size(directory: Path) -> None:
    edit_manifest(directory, lambda content: content["files"]["config.json"].update(size=1))


def the_manifest_lacks_a_file(directory: Path) -> None:
    edit_manifest(directory, lambda content: content["files"].pop("generation_config.json"))


def the_manifest_lists_a_file_more(directory: Path) -> None:
    edit_manifest(directory, lambda content: content["files"].update(more={"size": 0, "sha256": "0" * 64}))


def the_manifest_prunes_another_head(directory: Path) -> None:
    edit_manifest(directory, lambda content: content["mask"]["pruned"].update({"5": [4]}))


def the_manifest_claims_another_compensation(directory: Path) -> None:
    edit_manifest(directory, lambda content: content.update(compensation="none"))


ASKED, ORIGINALS, STATED = "is not what the mask asks for", "is not the original's", "is not what s4convert.json says"
AFTERWARDS: dict[ChangeFiles, str] = {
    one_layer_is_the_originals: "layer 5 has lost no head, where the mask takes heads 3",
    every_file_is_the_originals: "is byte-identical to .* in all 134 tensors: nothing was pruned",
    another_head_is_silent: "layer 5 has lost heads 6, where the mask takes heads 3",
    only_query_rows_are_zero: "layer 5 has lost no head, where the mask takes heads 3",
    one_layer_is_scaled_twice: f"layers.2.self_attn.o_proj.weight of layer 2 {ASKED}",
    one_layer_is_not_scaled: f"layers.2.self_attn.o_proj.weight of layer 2 {ASKED}",
    _lowest_bit_of_the_mlp(0): f"layers.0.mlp.down_proj.weight {ORIGINALS}",
    _lowest_bit_of_the_mlp(7): f"layers.7.mlp.down_proj.weight {ORIGINALS}",
    flips_one_bit_of_an_untouched_tensor: f"{UNTOUCHED} {ORIGINALS}",
    flips_one_bit_of_the_vision_tower: f"vision_tower.vision_model.embeddings.class_embedding {ORIGINALS}",
    silences_with_minus_zero: f"layers.5.self_attn.o_proj.weight of layer 5 {ASKED}",
    drops_a_sidecar: "preprocessor_config.json: is missing",
    rewrites_the_config: "config.json: its size is not the original's",
    changes_the_config_at_its_size: f"config.json, byte 688 {ORIGINALS}",
    adds_a_file: "model.safetensors.tmp: does not stand in the original",
    the_manifest_has_another_hash: f"config.json: {STATED}",
    the_manifest_has_another_size: f"config.json: {STATED}",
    the_manifest_lacks_a_file: f"generation_config.json: {STATED}",
    the_manifest_lists_a_file_more: f"more: {STATED}",
    the_manifest_prunes_another_head: "layer 5 has lost heads 3, where the mask takes heads 4",
    the_manifest_claims_another_compensation: f"layers.2.self_attn.o_proj.weight of layer 2 {ASKED}",
}


@pytest.mark.parametrize(("sabotage", "said"), AFTERWARDS.items(), ids=[sabotage.__name__ for sabotage in AFTERWARDS])
def test_a_conversion_that_was_tampered_with_fails_verification(
    converted: Path, mask: Path, sabotage: ChangeFiles, said: str
) -> None:
    sabotage(converted)
    # Where the manifest is gone with the rest, only a mask that is given can tell.
    given = None if (converted / "s4convert.json").exists() else mask
    with pytest.raises(VerificationError, match=said):
        verify_conversion(MINI_LLAVA, converted, mask=given, check_behaviour=False)


def test_a_conversion_that_was_not_tampered_with_passes_verification(converted: Path, mask: Path) -> None:
    for given in (None, mask):
        verify_conversion(MINI_LLAVA, converted, mask=given, check_behaviour=False)


def test_a_conversion_of_another_original_fails_verification(tmp_path: Path) -> None:
    ours = write_checkpoint(tmp_path / "ours", Spec(num_layers=2, seed=1))
    others = write_checkpoint(tmp_path / "others", Spec(num_layers=2, seed=2))
    deeper = write_checkpoint(tmp_path / "deeper", Spec(num_layers=3, seed=1))
    (tmp_path / "mask.json").write_text(json.dumps({"pruned_heads": {"1": [1]}}))
    convert(ours, tmp_path / "out", tmp_path / "mask.json", check_behaviour=False)
    with pytest.raises(VerificationError, match="was made from 'ours', another checkpoint than"):
        verify_conversion(others, tmp_path / "out", check_behaviour=False)
    with pytest.raises(VerificationError, match="geometry is not the original's"):
        verify_conversion(deeper, tmp_path / "out", check_behaviour=False)


@pytest.mark.parametrize("num_flips", [8, pytest.param(200, marks=pytest.mark.battery)])
def test_any_flipped_bit_of_any_file_is_noticed(tmp_path: Path, num_flips: int) -> None:
    spec = Spec(num_layers=2, num_kv_heads=2, heads_per_group=2, text_model="qwen2", dtype="BF16", num_shards=2)
    original = write_checkpoint(tmp_path / "in", spec)
    (tmp_path / "mask.json").write_text(json.dumps({"pruned_heads": {"0": [0, 1], "1": [2]}}))
    out = tmp_path / "out"
    convert(original, out, tmp_path / "mask.json", check_behaviour=False)
    dice = random.Random(5)
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "s4convert.json")
    flips = [(path, dice.randrange(8 * path.stat().st_size)) for path in files for _ in range(num_flips)]
    for path, bit in flips:
        flip_bit(path, bit)
        with pytest.raises(VerificationError):
            verify_conversion(original, out, check_behaviour=False)
        flip_bit(path, bit)
    assert len(flips) == num_flips * (6 + len(CARD_FILES))
    verify_conversion(original, out, check_behaviour=False)
