"""Two checkpoints of which nobody says anything: mask and compensation are read off their weights, or what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from s4convert import Checkpoint, HeadMask, Report, convert, verify_conversion
from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.checkpoint.dtypes import Float64Array, encode
from s4convert.errors import VerificationError
from tests.support.environments import in_the_newest_environment
from tests.support.modes import MAPS
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

pytestmark = in_the_newest_environment

SPEC = Spec(num_layers=4, num_kv_heads=5, head_dim=8, hidden_size=40)
GROUPED = replace(SPEC, num_kv_heads=3, heads_per_group=2, hidden_size=48, dtype="BF16", text_model="qwen2")
MASK = HeadMask(5, ((1, 4), (), (0,), (0, 1, 3)))
GROUPED_MASK = HeadMask(6, ((2, 3), (), (0,), (1, 4, 5)))

Change = Callable[[Path], None]


def moments(columns: int) -> Callable[[int], LayerMoments]:
    """Of heads whose outputs have something in common."""

    def of_layer(layer: int) -> LayerMoments:
        generator = np.random.Generator(np.random.PCG64(layer))
        outputs = generator.normal(0, 1, (400, columns)) + generator.normal(0, 1, (400, 1))
        return LayerMoments(Moments.of(outputs))

    return of_layer


def change(directory: Path, layer: int, projection: str, edit: Callable[[Float64Array], object]) -> None:
    """Rewrite a projection's weight; *edit* changes it in place."""
    checkpoint = Checkpoint.open(directory)
    rows = checkpoint.projection(layer, projection, "weight")
    assert rows is not None
    weight = checkpoint.read_projection(layer, projection)
    edit(weight)
    with (directory / rows.tensor.shard).open("r+b") as file:
        file.seek(rows.tensor.entry.begin + rows.first * rows.tensor.row_bytes)
        file.write(encode(weight, rows.tensor.dtype))


def converted(tmp_path: Path, mode: str, spec: Spec = SPEC, mask: HeadMask = MASK) -> tuple[Path, Path]:
    """(original, conversion without a manifest)."""
    original = write_checkpoint(tmp_path / "in", spec)
    out = tmp_path / "out"
    statistics = moments(spec.num_heads * spec.head_dim)
    convert(original, out, mask, compensation=mode, statistics=statistics, check_behaviour=False, card=False)
    (out / "s4convert.json").unlink()
    return original, out


def read_off(original: Path, out: Path) -> Report:
    return verify_conversion(original, out, check_behaviour=False)


# --- what was done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MAPS)
@pytest.mark.parametrize(("spec", "mask"), [(SPEC, MASK), (GROUPED, GROUPED_MASK)], ids=["own", "grouped"])
def test_mask_and_mode_are_read_off(tmp_path: Path, mode: str, spec: Spec, mask: HeadMask) -> None:
    if spec.heads_per_group > 1 and mode in ("similarity", "residual-transfer"):
        pytest.skip("goes by the V rows of each head")
    report = read_off(*converted(tmp_path, mode, spec, mask))
    assert (report.mask.pruned, report.compensation) == (mask.pruned, mode)
    assert report.structure.edited_tensors == 3 * (4 if spec is SPEC else 7)
    told = report.outcome_json()
    assert (told["cause"], told["compensation"]["mode"]) == (None, mode)
    assert max(row["off"] for row in told["compensation"]["layers"]) < (1e-3 if spec is SPEC else 1e-2)
    assert "read off the weights" in str(report)


def test_a_head_that_was_silent_before_is_pruned_where_its_queries_went(tmp_path: Path) -> None:
    original, out = write_checkpoint(tmp_path / "in", SPEC), tmp_path / "out"
    for head in (1, 2):
        change(original, 0, "o", lambda weight, head=head: weight[:, 8 * head : 8 * head + 8].fill(0))
    convert(original, out, MASK, compensation="none", check_behaviour=False, card=False, allow_converted=True)
    (out / "s4convert.json").unlink()
    assert read_off(original, out).mask.pruned == MASK.pruned


def test_factors_of_the_masks_own_are_told_from_n_over_n(tmp_path: Path) -> None:
    report = read_off(*converted(tmp_path, "scale", mask=replace(MASK, scale={2: 1.1})))
    assert report.compensation == "scale"
    assert report.mask.scale is not None
    assert list(report.mask.scale) == [2]
    assert report.mask.scale[2] == pytest.approx(1.1, rel=1e-4)


def test_n_over_n_upside_down_is_a_factor_like_any_other(tmp_path: Path) -> None:
    upside_down = {layer: (5 - len(MASK.pruned[layer])) / 5 for layer in MASK.touched_layers}
    report = read_off(*converted(tmp_path, "scale", mask=replace(MASK, scale=upside_down)))
    assert report.compensation == "uniform-ls"
    layers = report.outcome_json()["compensation"]["layers"]
    assert [row["lowest_factor"] for row in layers] == pytest.approx(list(upside_down.values()), rel=1e-3)
    assert "in layers 0, 2, 3, kept columns are the original's times n / N, where the S4 scale is N / n" in str(report)


def test_factors_that_someone_multiplied_in_float64_are_factors(tmp_path: Path) -> None:
    original, out = converted(tmp_path, "none", replace(SPEC, dtype="F32"))
    for layer in MASK.touched_layers:
        change(out, layer, "o", lambda weight: weight.__imul__(1.7))
    assert read_off(original, out).compensation == "uniform-ls"


def test_weights_that_no_map_gives_are_called_trained(tmp_path: Path) -> None:
    original, out = converted(tmp_path, "none")
    noise = np.random.Generator(np.random.PCG64(1))
    kept = np.r_[0:8, 16:32]
    change(out, 0, "q", lambda weight: weight.__setitem__(kept, weight[kept] + noise.normal(0, 0.1, (24, 40))))
    change(out, 2, "o", lambda weight: weight.__setitem__(np.s_[:, 8:], weight[:, 8:] + noise.normal(0, 0.1, (40, 32))))
    report = read_off(original, out)
    assert report.compensation == "distill"
    modes = {
        row["layer"]: (row["mode"], list(row["others_moved"]))
        for row in report.outcome_json()["compensation"]["layers"]
    }
    assert modes == {0: ("distill", ["q"]), 2: ("distill", []), 3: ("none", [])}
    assert "the fits of 2 layers are not checked against their data" in report.verdict


def test_shards_may_be_others_and_files_beside_them_are_named(tmp_path: Path) -> None:
    original, out = converted(tmp_path, "scale", replace(SPEC, num_shards=3))
    tensors = {name: t for shard in sorted(out.glob("*.safetensors")) for name, t in read_safetensors(shard).items()}
    for name in [*out.glob("*.safetensors"), out / "model.safetensors.index.json"]:
        name.unlink()
    write_safetensors(out / "model.safetensors", dict(sorted(tensors.items())))
    (out / "config.json").write_text(json.dumps(json.loads((out / "config.json").read_text()), indent=1))
    report = read_off(original, out)
    assert report.mask.pruned == MASK.pruned
    assert report.notes == ("1 files beside the weights are not the original's: config.json",)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_both_may_be_torch_files(tmp_path: Path, is_damaged: bool) -> None:
    for directory in converted(tmp_path, "scale"):
        tensors = load_file(directory / "model.safetensors")
        if is_damaged and directory.name == "out":
            tensors["language_model.model.layers.1.mlp.up_proj.weight"][5, 5] = 1
        (directory / "model.safetensors").unlink()
        torch.save(tensors, directory / "pytorch_model.bin")
    if is_damaged:
        with pytest.raises(VerificationError, match=r"layers\.1\.mlp\.up_proj\.weight is not the original's"):
            read_off(tmp_path / "in", tmp_path / "out")
    else:
        report = read_off(tmp_path / "in", tmp_path / "out")
        assert (report.mask.pruned, report.compensation) == (MASK.pruned, "scale")


# --- what is wrong ---------------------------------------------------------------------------------------------


def one_number_of_a_kept_column(out: Path) -> None:
    change(out, 2, "o", lambda weight: weight.__setitem__((7, 19), 3 * weight[7, 19]))


def one_kept_head_by_a_thousandth(out: Path) -> None:
    change(out, 3, "o", lambda weight: weight.__setitem__(np.s_[:, 16:24], weight[:, 16:24] * 1.001))


def one_number_of_a_query(out: Path) -> None:
    change(out, 0, "q", lambda weight: weight.__setitem__((3, 3), 2 * weight[3, 3]))


def the_queries_of_a_kept_head(out: Path) -> None:
    change(out, 0, "q", lambda weight: weight.__setitem__(np.s_[16:24], 0))


def a_query_of_a_pruned_head(out: Path) -> None:
    change(out, 0, "q", lambda weight: weight.__setitem__((9, 9), 1))


def a_number_of_a_pruned_column(out: Path) -> None:
    change(out, 0, "o", lambda weight: weight.__setitem__((9, 9), 1))


def a_number_of_an_untouched_layer(out: Path) -> None:
    change(out, 1, "k", lambda weight: weight.__setitem__((9, 9), 1))


@pytest.mark.parametrize(
    ("mode", "damage", "said"),
    [
        ("scale", one_number_of_a_kept_column, "layers.2.self_attn.o_proj.weight of layer 2: 1 of 32 kept columns"),
        (
            "head-ls",
            one_number_of_a_kept_column,
            "the original's times a factor, as the others are; the first is colum",
        ),
        ("least-squares", one_number_of_a_kept_column, "a mix of the pruned ones, as the others are; the first is col"),
        ("least-squares", one_kept_head_by_a_thousandth, "layer 3: 8 of 16 kept columns are not"),
        ("scale", one_number_of_a_query, "1 of the numbers of kept heads are not the original's, the first in head 0"),
        ("scale", the_queries_of_a_kept_head, "q_proj.weight of layer 0: the rows of head 2 are zero"),
        ("scale", a_query_of_a_pruned_head, "of layer 0: the rows of head 1 are not zero, though nothing reads"),
        ("scale", a_number_of_a_pruned_column, "o_proj.weight of layer 0 is not what the mask asks for"),
        ("scale", a_number_of_an_untouched_layer, "layers.1.self_attn.k_proj.weight is not the original's"),
    ],
)
def test_damage_is_named(tmp_path: Path, mode: str, damage: Change, said: str) -> None:
    original, out = converted(tmp_path, mode, replace(SPEC, hidden_size=64))
    assert read_off(original, out).compensation == mode
    damage(out)
    with pytest.raises(VerificationError) as caught:
        read_off(original, out)
    assert said in str(caught.value)
    assert caught.value.to_json()["mask"]["pruned"] == MASK.to_json()["pruned"]


def test_a_kv_head_that_a_kept_head_reads_must_not_be_zero(tmp_path: Path) -> None:
    original, out = converted(tmp_path, "scale", GROUPED, GROUPED_MASK)
    change(out, 2, "k", lambda weight: weight.__setitem__(np.s_[:8], 0))
    with pytest.raises(VerificationError, match=r"k_proj\.weight of layer 2: the rows of kv head 0 are zero"):
        read_off(original, out)


def nothing_pruned(original: Path, out: Path) -> tuple[Path, Path]:
    shutil.rmtree(out)
    shutil.copytree(original, out)
    return original, out


def one_bit_changed(original: Path, out: Path) -> tuple[Path, Path]:
    nothing_pruned(original, out)
    change(out, 2, "v", lambda weight: weight.__setitem__((0, 0), 1))
    return original, out


def another_original(original: Path, out: Path) -> tuple[Path, Path]:
    return write_checkpoint(out.parent / "other", replace(SPEC, seed=7)), out


def another_dtype(original: Path, out: Path) -> tuple[Path, Path]:
    return write_checkpoint(out.parent / "other", replace(SPEC, dtype="BF16")), out


def other_names(original: Path, out: Path) -> tuple[Path, Path]:
    tensors = read_safetensors(out / "model.safetensors")
    renamed = {name.replace("language_model.model.", "model.language_model."): t for name, t in tensors.items()}
    write_safetensors(out / "model.safetensors", renamed)
    return original, out


@pytest.mark.parametrize(
    ("arrange", "cause", "said"),
    [
        (nothing_pruned, "identical", "out: is byte-identical to in in all 43 tensors: nothing was pruned"),
        (one_bit_changed, "not-pruned", "no head became silent in it; 1 of 43 tensors differ"),
        (lambda original, out: (out, original), "swapped", "out: has silent heads that in has not"),
        (another_original, "another-original", "out: was made from another original than other: "),
        (another_dtype, "another-dtype", "is stored as F16, and as BF16 in other"),
        (other_names, "another-layout", "out: names its tensors otherwise than in: 38 of 43 are not there"),
    ],
    ids=["identical", "not pruned", "swapped", "another original", "another dtype", "other names"],
)
def test_causes_are_named(
    tmp_path: Path, arrange: Callable[[Path, Path], tuple[Path, Path]], cause: str, said: str
) -> None:
    before, after = arrange(*converted(tmp_path, "scale"))
    with pytest.raises(VerificationError) as caught:
        read_off(before, after)
    assert said in str(caught.value).replace(f"{tmp_path}/", "")
    assert caught.value.to_json()["cause"] == cause
    assert caught.value.to_json()["verdict"].startswith("FAILED, ")


def test_a_manifest_with_another_mask_than_the_one_given_and_the_weights(tmp_path: Path) -> None:
    original = write_checkpoint(tmp_path / "in", SPEC)
    convert(original, tmp_path / "out", MASK, check_behaviour=False)
    manifest = tmp_path / "out" / "s4convert.json"
    content = json.loads(manifest.read_text())
    content["mask"]["pruned"]["2"] = [3]
    manifest.write_text(json.dumps(content))
    with pytest.raises(VerificationError, match="its manifest has another mask than the one given: layer 2") as caught:
        verify_conversion(original, tmp_path / "out", mask=MASK, check_behaviour=False)
    assert caught.value.cause == "manifest-has-another-mask"
