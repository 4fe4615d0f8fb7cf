"""The plan names every edit that a mask asks for, by tensor and byte range, and nothing else."""

from __future__ import annotations

import json
import shutil
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s4convert.checkpoint import Checkpoint
from s4convert.compensation.fitting import known_before_fitting
from s4convert.mask import HeadMask
from s4convert.rewrite import plan as plan_module
from s4convert.rewrite.assembly import assemble
from s4convert.rewrite.plan import ColumnEdit, Plan, RowEdit
from tests.support.synthetic import HUGGING_FACE, ORIGINAL, Spec, read_safetensors, write_checkpoint, write_safetensors

WEIGHTS = "model.safetensors"
# Six heads of width 3 on three kv heads; with biases.
GROUPED = Spec(num_layers=3, num_kv_heads=3, heads_per_group=2, head_dim=3, hidden_size=8, text_model="qwen2")


def make_plan(checkpoint: Checkpoint, mask: HeadMask, mode: str) -> Plan:
    """The plan of a conversion with *mode*, which goes by the mask alone."""
    fits = known_before_fitting(mode, checkpoint, mask)
    return plan_module.make_plan(checkpoint, mask, fits, assemble(checkpoint))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", GROUPED))


def rows_of(plan: Plan) -> dict[str, list[tuple[int, int]]]:
    """[first, end) of every row edit, by the tensor's name without what all of them share."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for edit in plan.edits:
        if isinstance(edit, RowEdit):
            name = edit.tensor.name.removeprefix("language_model.model.layers.").replace("self_attn.", "")
            rows.setdefault(name, []).append((edit.first, edit.first + edit.count))
    return rows


def factors_of(plan: Plan) -> dict[int, list[float]]:
    """The factor of every column of ``o_proj``, by layer."""
    return {edit.layer: edit.fitted.factors.tolist() for edit in plan.edits if isinstance(edit, ColumnEdit)}


def test_neighbouring_heads_are_one_edit_and_others_one_each(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((), (0, 2, 3, 5), ())), "scale")
    assert rows_of(plan) == {
        "1.q_proj.weight": [(0, 3), (6, 12), (15, 18)],
        "1.q_proj.bias": [(0, 3), (6, 12), (15, 18)],
        "1.k_proj.weight": [(3, 6)],
        "1.k_proj.bias": [(3, 6)],
        "1.v_proj.weight": [(3, 6)],
        "1.v_proj.bias": [(3, 6)],
    }


def test_a_kv_head_is_silenced_only_with_all_its_query_heads(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((1, 2, 5), (0, 1, 2, 4, 5), ())), "scale")
    rows = rows_of(plan)
    assert {name for name in rows if name.startswith("0.")} == {"0.q_proj.weight", "0.q_proj.bias"}
    assert rows["0.q_proj.weight"] == [(3, 9), (15, 18)]
    assert rows["1.k_proj.weight"] == rows["1.v_proj.weight"] == [(0, 3), (6, 9)]


def test_without_grouped_queries_every_head_has_its_own_kv_head(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(num_kv_heads=4, head_dim=2)))
    plan = make_plan(checkpoint, HeadMask(4, ((1, 3), ())), "scale")
    assert rows_of(plan) == {f"0.{projection}_proj.weight": [(2, 4), (6, 8)] for projection in "qkv"}


def test_columns_of_pruned_heads_are_zero_and_the_others_take_all_heads_over_kept_heads(
    checkpoint: Checkpoint,
) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((0, 4), (), (1, 2, 3))), "scale")
    assert factors_of(plan) == {
        0: [0.0] * 3 + [1.5] * 9 + [0.0] * 3 + [1.5] * 3,
        2: [2.0] * 3 + [0.0] * 9 + [2.0] * 6,
    }


def test_without_compensation_the_other_columns_stay(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((0, 4), (), ()), scale={0: 3.0}), "none")
    assert factors_of(plan) == {0: [0.0] * 3 + [1.0] * 9 + [0.0] * 3 + [1.0] * 3}


def test_the_factor_of_the_mask_comes_first(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((0,), (1, 2, 3), ()), scale={0: 1.4545}), "scale")
    factors = factors_of(plan)
    assert factors[0] == [0.0] * 3 + [float(np.float32(1.4545))] * 15
    assert factors[1] == [2.0] * 3 + [0.0] * 9 + [2.0] * 6


def test_layers_that_lose_no_head_have_no_edit(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((), (2,), ())), "scale")
    assert {edit.layer for edit in plan.edits} == {1}
    assert all(edit.tensor.name.startswith("language_model.model.layers.1.self_attn.") for edit in plan.edits)


def test_a_bias_of_the_output_is_not_edited(checkpoint: Checkpoint) -> None:
    biases = [f"language_model.model.layers.{layer}.self_attn.o_proj.bias" for layer in range(3)]
    tensors = read_safetensors(checkpoint.path / WEIGHTS)
    write_safetensors(checkpoint.path / WEIGHTS, tensors | dict.fromkeys(biases, ("F16", (8,), bytes(16))))
    plan = make_plan(Checkpoint.open(checkpoint.path), HeadMask(6, ((0, 1), (), ())), "scale")
    edited = {edit.tensor.name.split("self_attn.")[1] for edit in plan.edits}
    assert edited == {f"{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")} | {"o_proj.weight"}


def test_byte_ranges_are_those_of_the_rows_in_the_file(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((), (2, 3), ())), "scale")
    content = (checkpoint.path / WEIGHTS).read_bytes()
    data_begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:data_begin])
    ranges = {edit.tensor.name.split("layers.1.self_attn.")[1]: (edit.begin, edit.end) for edit in plan.edits}

    def begin_of(name: str) -> int:
        return data_begin + header["language_model.model.layers.1.self_attn." + name]["data_offsets"][0]

    assert ranges["q_proj.weight"] == (begin_of("q_proj.weight") + 6 * 16, begin_of("q_proj.weight") + 12 * 16)
    assert ranges["q_proj.bias"] == (begin_of("q_proj.bias") + 6 * 2, begin_of("q_proj.bias") + 12 * 2)
    assert ranges["v_proj.weight"] == (begin_of("v_proj.weight") + 3 * 16, begin_of("v_proj.weight") + 6 * 16)
    assert ranges["o_proj.weight"] == (begin_of("o_proj.weight"), begin_of("o_proj.weight") + 8 * 18 * 2)
    assert plan.num_bytes == sum(end - begin for begin, end in ranges.values())


def test_making_a_plan_reads_nothing(checkpoint: Checkpoint) -> None:
    mask = HeadMask(6, ((0, 1), (), (3,)))
    before = make_plan(checkpoint, mask, "scale").to_json()
    shutil.rmtree(checkpoint.path)
    assert make_plan(checkpoint, mask, "scale").to_json() == before


def test_the_plan_for_a_script_lists_every_edit_in_order(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((0,), (), ())), "scale")
    content = json.loads(json.dumps(plan.to_json()))
    assert (content["compensation"], content["heads"]["pruned"]) == ("scale", 1)
    assert content["rewritten_bytes"] == plan.num_bytes
    assert [(e["tensor"].split("self_attn.")[1], e["shard"], e["change"]) for e in content["edits"]] == [
        ("q_proj.weight", WEIGHTS, "rows 0-2 become 0"),
        ("q_proj.bias", WEIGHTS, "rows 0-2 become 0"),
        ("o_proj.weight", WEIGHTS, "3 of 18 columns become 0, the others times 1.2000"),
    ]
    assert [(e["begin"], e["end"]) for e in content["edits"]] == [(e.begin, e.end) for e in plan.edits]


def test_pruned_columns_become_positive_zero_whatever_they_held(checkpoint: Checkpoint) -> None:
    plan = make_plan(checkpoint, HeadMask(6, ((1,), (), ())), "scale")
    (edit,) = (edit for edit in plan.edits if isinstance(edit, ColumnEdit))
    rows = np.full((2, 18), -3.0, dtype=np.float32)
    edited = edit.transform(rows)
    assert edited.dtype == np.float32
    assert (edited[:, 3:6] == 0).all()
    assert not np.signbit(edited[:, 3:6]).any()
    assert (np.delete(edited, slice(3, 6), axis=1) == np.float32(-3.0) * np.float32(1.2)).all()
    assert (rows == -3.0).all()


# --- any mask -----------------------------------------------------------------------------------------------


@cache
def opened(directory: Path, spec: Spec) -> Checkpoint:
    """The checkpoint of *spec*, written once."""
    return Checkpoint.open(write_checkpoint(directory / str(SPECS.index(spec)), spec))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


SPECS = [
    GROUPED,
    Spec(num_layers=3, num_kv_heads=6, num_shards=4, layout=ORIGINAL, dtype="F32"),
    Spec(num_layers=3, num_kv_heads=2, heads_per_group=3, head_dim=1, num_shards=3, text_model="qwen2", dtype="BF16"),
    Spec(num_layers=3, num_kv_heads=1, heads_per_group=6, head_dim=5, layout=HUGGING_FACE, text_model="mistral"),
]
LAYER = st.sets(st.integers(0, 5), max_size=5).map(lambda heads: tuple(sorted(heads)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(spec=st.sampled_from(SPECS), pruned=st.tuples(LAYER, LAYER, LAYER).filter(any))
def test_edits_are_sorted_apart_from_each_other_and_cover_exactly_what_the_mask_names(
    directory: Path, spec: Spec, pruned: tuple[tuple[int, ...], ...]
) -> None:
    checkpoint = opened(directory, spec)
    plan = make_plan(checkpoint, HeadMask(6, pruned), "scale")

    files = {file.name: file for file in plan.files}
    assert {name: file.size for name, file in files.items()} == {n: s.size for n, s in checkpoint.stamps.items()}
    assert [edit for shard in sorted(checkpoint.shards) for edit in plan.edits_in(*files[shard].pieces)] == list(
        plan.edits
    )
    for shard, header in checkpoint.shards.items():
        edits = plan.edits_in(*files[shard].pieces)
        assert all(edit.begin < edit.end for edit in edits)
        assert all(before.end <= after.begin for before, after in pairwise(edits))
        assert all(header.entries[0].begin <= edit.begin and edit.end <= header.file_size for edit in edits)
        assert all(edit.tensor.entry.begin <= edit.begin and edit.end <= edit.tensor.entry.end for edit in edits)

    rows = {
        (e.tensor.name, row) for e in plan.edits if isinstance(e, RowEdit) for row in range(e.first, e.first + e.count)
    }
    width, group = spec.head_dim, spec.heads_per_group
    expected = set()
    for layer, heads in enumerate(pruned):
        kv_heads = [kv for kv in range(spec.num_kv_heads) if {kv * group + i for i in range(group)} <= set(heads)]
        for projection, silenced in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            for kind in ("weight", "bias") if spec.text_model == "qwen2" else ("weight",):
                found = checkpoint.projection(layer, projection, kind)
                assert found is not None and found.first == 0
                expected |= {(found.tensor.name, head * width + i) for head in silenced for i in range(width)}
    assert rows == expected
    assert set(factors_of(plan)) == {layer for layer, heads in enumerate(pruned) if heads}
