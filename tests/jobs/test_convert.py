"""The library's one call: what it refuses from a program, and names that are hard to write down."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from s4convert import HeadMask, convert
from s4convert.errors import CheckpointError, MaskError, S4ConvertError, UsageError
from tests.support.synthetic import Spec, encode, read_safetensors, write_checkpoint, write_safetensors

SPEC = Spec(num_layers=2, num_kv_heads=4, hidden_size=16)
MASK = HeadMask(4, ((1,), ()))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.mark.parametrize(
    ("make_mask", "message"),
    [
        (lambda: HeadMask(4, ((1,), ()), scale={0: 0.0}), "scale, layer 0: 0.0 is not a factor"),
        (lambda: HeadMask(4, ((1,), ()), scale={0: -3.0}), "scale, layer 0: -3.0 is not a factor"),
        (lambda: HeadMask(4, ((1,), ()), scale={0: float("nan")}), "scale, layer 0: nan is not a factor"),
        (lambda: HeadMask(4, ((1,), ()), scale={1: 2.0}), "scale: layer 1 is not a layer that loses heads"),
        (lambda: HeadMask(4, ((1,),)), "is for 1 layers of 4 heads, but the checkpoint has 2 layers of 4"),
        (lambda: HeadMask(8, ((1,), ())), "is for 2 layers of 8 heads"),
        (lambda: HeadMask(4, ((), ())), "prunes no head"),
        (lambda: HeadMask(4, ((0, 1, 2, 3), ())), "layer 0: every head is pruned"),
        (lambda: HeadMask(4, ((4,), ())), "layer 0: (4,) are not sorted head numbers"),
        (lambda: HeadMask(4, ((2, 1), ())), "layer 0: (2, 1) are not sorted head numbers"),
        (lambda: HeadMask(4, ((True,), ())), "layer 0: (True,) are not sorted head numbers"),
        (lambda: HeadMask(4, ((np.int64(1),), ())), "are not sorted head numbers"),  # type: ignore[arg-type]
    ],
)
def test_a_mask_made_by_a_program_is_checked_as_one_from_a_file_is(
    source: Path, tmp_path: Path, make_mask: Callable[[], HeadMask], message: str
) -> None:
    with pytest.raises(MaskError) as caught:
        convert(source, tmp_path / "out", make_mask(), check_behaviour=False)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compensation": "scal"}, "'scal' is none of scale, none"),
        ({"jobs": 0}, "0 `jobs`"),
        ({"jobs": -1}, "-1 `jobs`"),
        ({"jobs": "2"}, "`jobs` is '2', not of type int or None"),
        ({"force": 1}, "`force` is 1, not of type bool"),
        ({"num_samples": True}, "`num_samples` is True, not of type int or None"),
        ({"schedule": 0.3}, "`schedule` is 0.3, not of type str or Schedule or None"),
        ({"rate": 0.3}, "`mask_polarity`, `schedule` and `rate` are about a mask file"),
        ({"shard_size": "5 elephants"}, "`shard_size` '5 elephants' is not a size"),
        ({"shard_size": "5GB"}, "leave `shard_size` out"),
    ],
)
def test_an_option_that_means_nothing_is_refused(
    source: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        convert(source, tmp_path / "out", MASK, check_behaviour=False, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("projection", ["q", "k", "v", "o"])
def test_a_weight_that_is_not_finite_is_an_error_where_it_is_edited(
    source: Path, tmp_path: Path, projection: str, value: float
) -> None:
    file, name = source / "model.safetensors", f"language_model.model.layers.0.self_attn.{projection}_proj.weight"
    tensors = read_safetensors(file)
    dtype, shape, _ = tensors[name]
    weights = np.ones(shape, np.float32)
    weights[SPEC.head_dim, SPEC.head_dim] = value  # a row, and a column, of head 1
    write_safetensors(file, tensors | {name: (dtype, shape, encode(weights, dtype))})
    with pytest.raises(CheckpointError, match=rf"{projection}_proj.weight \(layer 0\) holds NaN or infinity"):
        convert(source, tmp_path / "out", MASK, check_behaviour=False)
    assert not (tmp_path / "out").exists()


def test_a_file_name_that_is_not_text_and_a_lone_surrogate_reach_the_manifest(source: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.txt")).write_text("a sidecar")
    mask = HeadMask(4, MASK.pruned, provenance={"note": "\ud800"})
    out = tmp_path / "out"
    convert(source, out, mask, check_behaviour=False)
    manifest = json.loads((out / "s4convert.json").read_text())
    assert "\udcff.txt" in manifest["files"]
    assert manifest["mask"]["provenance"] == {"note": "\ud800"}


def test_every_error_of_the_package_has_an_exit_code() -> None:
    def leaves(error: type[S4ConvertError]) -> list[type[S4ConvertError]]:
        return [leaf for child in error.__subclasses__() for leaf in leaves(child)] or [error]

    assert {leaf.exit_code for leaf in leaves(S4ConvertError)} == {1, 2, 3, 4}
