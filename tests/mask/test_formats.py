"""Which masks are read, how, and which are refused with what words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converter.checkpoint import Geometry
from converter.errors import MaskError, StorageError
from converter.mask import HeadMask, load_mask, parse_mask

# Three layers of four heads on two kv heads.
GEOMETRY = Geometry(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2, hidden_size=8)
TWO_HEADS = Geometry(num_layers=3, num_heads=2, num_kv_heads=2, head_dim=2, hidden_size=4)

CALIBRATION = {
    "pruned_heads": {"0": [0, 1, 1, 0], "1": [0, 0, 0, 0], "2": [1, 0, 0, 0]},
    "total_pruned_heads": 3,
    "total_heads": 12,
}
NATIVE = {"format": "s4convert-mask/1", "num_layers": 3, "num_heads": 4, "pruned": {"0": [1, 2], "2": [0]}}
PRUNED = ((1, 2), (), (0,))


def load(tmp_path: Path, content: object, geometry: Geometry = GEOMETRY) -> tuple[HeadMask, str]:
    """Load *content*, as it is where it is text or bytes, from a file."""
    path = tmp_path / "mask.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_mask(path, geometry)


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "how_read"),
    [
        (CALIBRATION, "S4 calibration, 1 = pruned"),
        (CALIBRATION | {"rate": 0.25, "note": "other fields are not ours"}, "S4 calibration, 1 = pruned"),
        ({"pruned_heads": {"0": [1, 2], "2": [0]}}, "listed heads, listed = pruned"),
        ({"pruned_heads": {"2": [0], "0": [2, 1], "1": []}}, "listed heads, listed = pruned"),
        ({"0": [1, 2], "2": [0]}, "listed heads, listed = pruned"),
        (NATIVE, "native mask, listed = pruned"),
        (NATIVE | {"pruned": {"2": [0], "1": [], "0": [2, 1]}}, "native mask, listed = pruned"),
    ],
    ids=[
        *("calibration", "calibration with other fields", "pruned_heads", "pruned_heads in any order"),
        *("bare", "native", "native in any order"),
    ],
)
def test_every_format_gives_the_same_mask_and_says_how_it_was_read(
    tmp_path: Path, content: dict[str, Any], how_read: str
) -> None:
    mask, read_as = load(tmp_path, content)
    assert mask == HeadMask(4, PRUNED)
    assert read_as == f"{how_read}, 3 of 12 heads"


@pytest.mark.parametrize("content", [{"pruned_heads": {"0": [2, 5]}}, {"0": [2, 5]}])
def test_two_heads_of_thirty_two_are_no_flags(tmp_path: Path, content: dict[str, Any]) -> None:
    geometry = Geometry(num_layers=2, num_heads=32, num_kv_heads=8, head_dim=4, hidden_size=128)
    mask, _ = load(tmp_path, content, geometry)
    assert mask.pruned == ((2, 5), ())


def test_zero_and_one_are_head_numbers_where_there_are_more_heads(tmp_path: Path) -> None:
    mask, _ = load(tmp_path, {"0": [0, 1]})
    assert mask.pruned == ((0, 1), (), ())


def test_the_native_format_lists_head_numbers_even_where_they_look_like_flags(tmp_path: Path) -> None:
    content = NATIVE | {"num_heads": 2, "pruned": {"0": [1], "1": [0]}}
    mask, _ = load(tmp_path, content, TWO_HEADS)
    assert mask.pruned == ((1,), (0,), ())


def test_a_calibration_file_has_flags_even_where_they_look_like_head_numbers(tmp_path: Path) -> None:
    content = {"pruned_heads": {"0": [0, 1], "1": [1, 0], "2": [0, 0]}, "total_pruned_heads": 2, "total_heads": 6}
    mask, _ = load(tmp_path, content, TWO_HEADS)
    assert mask.pruned == ((1,), (0,), ())


@pytest.mark.parametrize("factor", [1.4545, 2, 1e-6, 1e6])
def test_a_native_mask_may_carry_factors_and_where_it_came_from(tmp_path: Path, factor: float) -> None:
    mask, _ = load(tmp_path, NATIVE | {"scale": {"2": factor}, "provenance": {"rate": 0.3}})
    assert mask == HeadMask(4, PRUNED, scale={2: float(factor)}, provenance={"rate": 0.3})


def test_a_native_mask_without_factors_has_none(tmp_path: Path) -> None:
    assert load(tmp_path, NATIVE)[0].scale is None
    assert load(tmp_path, NATIVE | {"provenance": None})[0].provenance is None


@st.composite
def masks(draw: st.DrawFn) -> tuple[HeadMask, Geometry]:
    num_layers, num_heads = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    layers = st.sets(st.integers(0, num_heads - 1), max_size=num_heads - 1).map(lambda heads: tuple(sorted(heads)))
    pruned = draw(st.lists(layers, min_size=num_layers, max_size=num_layers).filter(any))
    touched = [layer for layer, heads in enumerate(pruned) if heads]
    scale = draw(st.none() | st.dictionaries(st.sampled_from(touched), st.floats(1e-6, 1e6)))
    provenance = draw(st.none() | st.dictionaries(st.sampled_from(["rate", "é", ""]), st.integers() | st.floats(0, 1)))
    return HeadMask(num_heads, tuple(pruned), scale, provenance), Geometry(num_layers, num_heads, num_heads, 2, 8)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(masks())
def test_what_is_written_in_the_native_format_is_read_back(drawn: tuple[HeadMask, Geometry]) -> None:
    mask, geometry = drawn
    assert parse_mask(json.loads(json.dumps(mask.to_json())), geometry)[0] == mask


# --- what is refused ----------------------------------------------------------------------------------------


def calibration(**changes: object) -> dict[str, object]:
    return {**CALIBRATION, **changes}


def flags(**layers: object) -> dict[str, object]:
    """The calibration file with the flags of some layers changed; ``l1`` is layer 1."""
    changed = {name.removeprefix("l"): heads for name, heads in layers.items()}
    return calibration(pruned_heads={**CALIBRATION["pruned_heads"], **changed})  # type: ignore[dict-item]


def native(**changes: object) -> dict[str, object]:
    return {**NATIVE, **changes}


REFUSED: dict[str, tuple[object, str]] = {
    # no JSON, or no object
    "empty file": ("", "is not a JSON mask"),
    "cut off": ('{"0": [1', "is not a JSON mask"),
    "trailing junk": ('{"0": [1]} x', "is not a JSON mask"),
    "Python": ("{0: [1]}", "is not a JSON mask"),
    "pickle": (b"\x80\x04}q\x00.", "is not a JSON mask"),
    "not UTF-8": (b'{"\xff": [1]}', "is not a JSON mask"),
    "too deep": ("[" * 100_000, "nested too deeply"),
    "number of 5000 digits": ('{"0": [' + "1" * 5000 + "]}", "is not a JSON mask"),
    "list": ([[0, 1, 1, 0]], "is not a JSON object"),
    "null": ("null", "is not a JSON object"),
    "string": ('"0"', "is not a JSON object"),
    # names that stand twice
    "layer twice": ('{"0": [1], "0": [2]}', "'0' stands twice"),
    "layer twice, once escaped": (r'{"0": [1], "\u0030": [2]}', "'0' stands twice"),
    "pruned_heads twice": ('{"pruned_heads": {"0": [1]}, "pruned_heads": {}}', "'pruned_heads' stands twice"),
    "nested layer twice": ('{"pruned_heads": {"1": [1], "1": [1]}}', "'1' stands twice"),
    "one layer by two names": ('{"0": [1], "00": [2]}', "'00' is not a layer number"),
    # layers
    "layer out of range": ({"3": [1]}, "layer 3: out of range, the checkpoint has layers 0 to 2"),
    "negative layer": ({"-1": [1]}, "'-1' is not a layer number"),
    "layer with a sign": ({"+1": [1]}, "'+1' is not a layer number"),
    "layer with a space": ({" 1": [1]}, "' 1' is not a layer number"),
    "layer is a fraction": ({"1.0": [1]}, "'1.0' is not a layer number"),
    "layer is a word": ({"layer_0": [1]}, "'layer_0' is not a layer number"),
    "layer is empty": ({"": [1]}, "'' is not a layer number"),
    "layer in other digits": ({"\u0661": [1]}, "is not a layer number"),
    "layer is a superscript": ({"\u00b2": [1]}, "is not a layer number"),
    "components": ({"components": {"attention_heads": {"kept": {"0": [1]}}}}, "'components' is not a layer number"),
    "pruned_heads is a list": ({"pruned_heads": [[0, 1]]}, "pruned_heads is not an object"),
    "pruned_heads is null": ({"pruned_heads": None}, "pruned_heads is not an object"),
    # heads
    "heads are null": ({"0": None}, "layer 0: None is not a list"),
    "heads are a number": ({"1": 2}, "layer 1: 2 is not a list"),
    "heads are an object": ({"1": {"2": 1}}, "layer 1: {'2': 1} is not a list"),
    "heads are a string": ({"1": "2"}, "layer 1: '2' is not a list"),
    "head out of range": ({"2": [0, 4]}, "layer 2, head 4: out of range, the checkpoint has heads 0 to 3"),
    "negative head": ({"2": [-1]}, "layer 2, head -1: out of range"),
    "head is a fraction": ({"0": [1.0]}, "layer 0: 1.0 is not a head number"),
    "head is a boolean": ({"0": [True]}, "layer 0: True is not a head number"),
    "head is a string": ({"0": ["1"]}, "layer 0: '1' is not a head number"),
    "head is null": ({"0": [None]}, "layer 0: None is not a head number"),
    "head is a list": ({"0": [[1]]}, "layer 0: [1] is not a head number"),
    "head is NaN": ('{"0": [NaN]}', "NaN is not JSON"),
    "head twice": ({"1": [2, 3, 2]}, "layer 1, head 2: listed twice"),
    # flags or head numbers
    "flags without totals": ({"pruned_heads": CALIBRATION["pruned_heads"]}, "may be flags or head numbers"),
    "bare flags": ({"0": [0, 1, 1, 0]}, "layer 0: [0, 1, 1, 0] may be flags or head numbers"),
    "flags in one layer": ({"0": [2, 3], "1": [0, 1, 0, 0]}, "layer 1: [0, 1, 0, 0] may be flags or head numbers"),
    # the mask as a whole
    "nothing pruned": ({"0": [], "1": []}, "prunes no head"),
    "no layer": ({}, "prunes no head"),
    "no layer in pruned_heads": ({"pruned_heads": {}}, "prunes no head"),
    "whole layer pruned": ({"0": [1], "1": [3, 2, 1, 0]}, "layer 1: every head is pruned"),
    "whole layer flagged": (
        flags(l1=[1, 1, 1, 1]) | {"total_pruned_heads": 7},
        "layer 1: every head is pruned",
    ),
    "nothing flagged": (
        flags(l0=[0, 0, 0, 0], l2=[0, 0, 0, 0]) | {"total_pruned_heads": 0},
        "prunes no head",
    ),
    # calibration
    "pruned total disagrees": (calibration(total_pruned_heads=4), "total_pruned_heads is 4, but the lists add up to 3"),
    "head total disagrees": (calibration(total_heads=1024), "total_heads is 1024, but the lists add up to 12"),
    "pruned total missing": ({k: v for k, v in CALIBRATION.items() if k != "total_pruned_heads"}, "is None, but the"),
    "head total missing": ({k: v for k, v in CALIBRATION.items() if k != "total_heads"}, "total_heads is None, but"),
    "pruned total is a string": (calibration(total_pruned_heads="3"), "total_pruned_heads is '3', but"),
    "totals alone": ({"total_pruned_heads": 0, "total_heads": 12}, "pruned_heads is not an object"),
    "too few layers": (calibration(pruned_heads={"0": [0, 1, 1, 0]}), "has 1 layers, but the checkpoint has 3"),
    "too many layers": (flags(l3=[0, 0, 0, 0]), "layer 3: out of range"),
    "too few flags": (flags(l1=[0, 0, 0]), "layer 1: has 3 flags for 4 heads"),
    "too many flags": (flags(l1=[0, 0, 0, 0, 0]), "layer 1: has 5 flags for 4 heads"),
    "head numbers with totals": (flags(l0=[1, 2]), "layer 0: has 2 flags for 4 heads"),
    "flag of two": (flags(l2=[0, 0, 2, 0]), "layer 2, head 2: 2 is neither 0 nor 1"),
    "negative flag": (flags(l2=[-1, 0, 0, 0]), "layer 2, head 0: -1 is neither 0 nor 1"),
    "fractional flag": (flags(l2=[1.0, 0, 0, 0]), "layer 2, head 0: 1.0 is neither 0 nor 1"),
    "boolean flag": (flags(l2=[True, False, False, False]), "layer 2, head 0: True is neither 0 nor 1"),
    # native
    "another version": (native(format="s4convert-mask/2"), "format is 's4convert-mask/2'; this version reads"),
    "scores": (native(format="s4convert-scores/1"), "format is 's4convert-scores/1'; this version reads"),
    "format is null": (native(format=None), "format is None; this version reads"),
    "layers of another model": (native(num_layers=32), "num_layers is 32, but the checkpoint has 3"),
    "heads of another model": (native(num_heads=32), "num_heads is 32, but the checkpoint has 4"),
    "no number of layers": ({k: v for k, v in NATIVE.items() if k != "num_layers"}, "num_layers is None, but"),
    "no pruned": ({k: v for k, v in NATIVE.items() if k != "pruned"}, "pruned is not an object"),
    "pruned_heads in place of pruned": (
        {"format": "s4convert-mask/1", "num_layers": 3, "num_heads": 4, "pruned_heads": {"0": [1]}},
        "pruned is not an object",
    ),
    "native layer out of range": (native(pruned={"3": [0]}), "layer 3: out of range"),
    "native head out of range": (native(pruned={"0": [4]}), "layer 0, head 4: out of range"),
    "native head twice": (native(pruned={"0": [1, 1]}), "layer 0, head 1: listed twice"),
    "native whole layer": (native(pruned={"0": [0, 1, 2, 3]}), "layer 0: every head is pruned"),
    "native without effect": (native(pruned={}), "prunes no head"),
    "provenance is a string": (native(provenance="me"), "provenance is not an object"),
    # factors
    "scale is a number": (native(scale=1.5), "scale is not an object"),
    "scale is null": (native(scale=None), "scale is not an object"),
    "scale of a layer that keeps its heads": (
        native(scale={"1": 1.5}),
        "scale: layer 1 is not a layer that loses heads",
    ),
    "scale of no layer": (native(scale={"3": 1.5}), "scale: layer 3 is not a layer that loses heads"),
    "scale of a word": (native(scale={"all": 1.5}), "'all' is not a layer number"),
    "scale is NaN": (native(scale={"0": float("nan")}), "NaN is not JSON"),
    "scale is infinite": (native(scale={"0": float("inf")}), "Infinity is not JSON"),
    "scale is too large for a float": (native(scale={"0": 10**400}), "is not a factor"),
    "scale is zero": (native(scale={"0": 0}), "scale, layer 0: 0 is not a factor"),
    "scale is negative": (native(scale={"0": -1.5}), "scale, layer 0: -1.5 is not a factor"),
    "scale is tiny": (native(scale={"0": 9e-7}), "scale, layer 0: 9e-07 is not a factor"),
    "scale is huge": (native(scale={"0": 1.1e6}), "scale, layer 0: 1100000.0 is not a factor"),
    "scale is a string": (native(scale={"0": "1.5"}), "scale, layer 0: '1.5' is not a number"),
    "scale is a boolean": (native(scale={"0": True}), "scale, layer 0: True is not a number"),
    "scale is a list": (native(scale={"0": [1.5]}), "scale, layer 0: [1.5] is not a number"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_with_the_reason(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'mask.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("heads", [[0, 1], [1, 0], [0, 0], [1, 1]])
def test_with_two_heads_a_list_of_two_is_ambiguous_and_the_message_says_what_settles_it(
    tmp_path: Path, heads: list[int]
) -> None:
    with pytest.raises(MaskError, match="may be flags or head numbers") as caught:
        load(tmp_path, {"pruned_heads": {"0": heads}}, TWO_HEADS)
    for way_out in ("total_pruned_heads", "total_heads", "s4convert-mask/1"):
        assert way_out in str(caught.value)


def test_a_mask_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        load_mask(tmp_path / "mask.json", GEOMETRY)


@pytest.mark.parametrize("content", [{"9" * 5000: [1]}, native(scale={"9" * 5000: 1.5})], ids=["layer", "scale"])
def test_a_layer_of_5000_digits_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(MaskError):
        load(tmp_path, content)


def test_two_factors_for_one_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError):
        load(tmp_path, native(scale={"0": 1.5, "00": 2.0}))
