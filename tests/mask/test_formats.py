"""Which JSON masks are read, how, and which are refused with what words."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s4convert.checkpoint import Geometry
from s4convert.errors import MaskError, StorageError, UsageError
from s4convert.mask import HeadMask, Schedule, parse_schedule
from s4convert.mask.files import load_mask
from s4convert.mask.formats import content as mask_file
from s4convert.mask.formats.json_masks import read_native
from tests.support.command_line import ROOT

# Three layers of four heads on two kv heads.
GEOMETRY = Geometry(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2, hidden_size=8)
TWO_HEADS = Geometry(num_layers=3, num_heads=2, num_kv_heads=2, head_dim=2, hidden_size=4)

CALIBRATION = {
    "pruned_heads": {"0": [0, 1, 1, 0], "1": [0, 0, 0, 0], "2": [1, 0, 0, 0]},
    "total_pruned_heads": 3,
    "total_heads": 12,
}
NATIVE = {"format": "s4convert-mask/1", "num_layers": 3, "num_heads": 4, "pruned": {"0": [1, 2], "2": [0]}}
KEPT = {"components": {"attention_heads": {"kept": {"0": [0, 3], "1": [0, 1, 2, 3], "2": [1, 2, 3]}, "total": 4}}}
FLAGS = [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]  # 1 = pruned
SCORES = {"0": [0.9, 0.1, 0.2, 0.8], "1": [0.7, 0.9, 0.6, 0.8], "2": [0.3, 0.5, 0.6, 0.7]}
NATIVE_SCORES = {"format": "s4convert-scores/1", "num_layers": 3, "num_heads": 4, "scores": SCORES}
QUARTER = parse_schedule("uniform", "0.25")
BANDS = parse_schedule("bands:0:0.5,1:0,2:0.25")
PRUNED = ((1, 2), (), (0,))


def load(
    tmp_path: Path,
    content: object,
    geometry: Geometry = GEOMETRY,
    *,
    polarity: Any = None,
    schedule: Schedule | None = None,
) -> tuple[HeadMask, str]:
    """Load *content*, as it is where it is text or bytes, from a file."""
    path = tmp_path / "mask.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    mask = load_mask(path, geometry, polarity=polarity, schedule=schedule)
    return mask, mask.file.how_read


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "how_read"),
    [
        (CALIBRATION, "S4 calibration, 1 = pruned"),
        (CALIBRATION | {"num_layers": 3, "num_heads": 4}, "S4 calibration, 1 = pruned"),
        ({"pruned_heads": {"0": [1, 2], "2": [0]}}, "listed heads, listed = pruned"),
        ({"pruned_heads": {"2": [0], "0": [2, 1], "1": []}}, "listed heads, listed = pruned"),
        ({"0": [1, 2], "2": [0]}, "listed heads, listed = pruned"),
        ({"0": [1, 2], "2": [0], "num_layers": 3, "num_heads": 4}, "listed heads, listed = pruned"),
        ({"pruned_heads": [[0, 1], [0, 2], [2, 0]]}, "listed rows, listed = pruned"),
        ({"pruned_heads": [[0, 1, 0.25], [0, 2, -3], [2, 0]]}, "listed rows, listed = pruned"),
        ({"pruned_heads": [[2, 0], [0, 2], [0, 1]]}, "listed rows, listed = pruned"),
        (KEPT, "kept heads, listed = kept"),
        (NATIVE, "native mask, listed = pruned"),
        (NATIVE | {"pruned": {"2": [0], "1": [], "0": [2, 1]}}, "native mask, listed = pruned"),
    ],
    ids=[
        *("calibration", "calibration with sizes", "pruned_heads", "pruned_heads in any order", "bare"),
        *("bare with sizes", "rows", "rows with scores", "rows in any order", "kept"),
        *("native", "native in any order"),
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


@pytest.mark.parametrize("name", ["polarity", "keep", "gamma"])
def test_a_field_that_a_calibration_file_does_not_have_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MaskError, match=f"'{name}' is not a field of an S4 calibration file; remove it"):
        load(tmp_path, calibration(**{name: "keep"}))


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
    assert read_native(json.loads(json.dumps(mask.to_json())), geometry) == mask


# --- what is refused ----------------------------------------------------------------------------------------


def calibration(**changes: object) -> dict[str, object]:
    return {**CALIBRATION, **changes}


def flags(**layers: object) -> dict[str, object]:
    """The calibration file with the flags of some layers changed; ``l1`` is layer 1."""
    changed = {name.removeprefix("l"): heads for name, heads in layers.items()}
    return calibration(pruned_heads={**CALIBRATION["pruned_heads"], **changed})  # type: ignore[dict-item]


def native(**changes: object) -> dict[str, object]:
    return {**NATIVE, **changes}


def kept(**changes: object) -> dict[str, object]:
    """The kept heads with some fields of attention_heads changed."""
    heads = KEPT["components"]["attention_heads"]
    return {"components": {"attention_heads": {**heads, **changes}}}


REFUSED: dict[str, tuple[object, str]] = {
    # no JSON, or no object
    "empty file": ("", "is not JSON ("),
    "cut off": ('{"0": [1', "is not JSON ("),
    "trailing junk": ('{"0": [1]} x', "is not JSON ("),
    "Python": ("{0: [1]}", "is not JSON ("),
    "pickle": (b"\x80\x04}q\x00.", "is not JSON ("),
    "not UTF-8": (b'{"\xff": [1]}', "is not JSON ("),
    "too deep": ("[" * 100_000, "nested too deeply"),
    "number of 5000 digits": ('{"0": [' + "1" * 5000 + "]}", "is not JSON ("),
    "null": ("null", "is neither a JSON object nor a list"),
    "string": ('"0"', "is neither a JSON object nor a list"),
    "number too large": ('{"0": [1e400]}', "layer 0, head 0: the score inf is not a finite number"),
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
    "head is NaN": ('{"0": [NaN]}', "layer 0, head 0: the score nan is not a finite number"),
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
    "too few layers": (
        calibration(pruned_heads={"0": [0, 1, 1, 0]}),
        "layer 1: missing; each of the 3 layers needs its flags",
    ),
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
    "scores": (native(format="s4convert-scores/1"), "'pruned' is not a field of s4convert-scores/1"),
    "format is null": (native(format=None), "format is None; this version reads"),
    "layers of another model": (native(num_layers=32), "num_layers is 32, but the checkpoint has 3"),
    "heads of another model": (native(num_heads=32), "num_heads is 32, but the checkpoint has 4"),
    "no number of layers": ({k: v for k, v in NATIVE.items() if k != "num_layers"}, "num_layers is missing"),
    "no pruned": ({k: v for k, v in NATIVE.items() if k != "pruned"}, "pruned is not an object"),
    "pruned_heads in place of pruned": (
        {"format": "s4convert-mask/1", "num_layers": 3, "num_heads": 4, "pruned_heads": {"0": [1]}},
        "'pruned_heads' is not a field of s4convert-mask/1; remove it",
    ),
    "native layer out of range": (native(pruned={"3": [0]}), "layer 3: out of range"),
    "native head out of range": (native(pruned={"0": [4]}), "layer 0, head 4: out of range"),
    "native head twice": (native(pruned={"0": [1, 1]}), "layer 0, head 1: listed twice"),
    "native whole layer": (native(pruned={"0": [0, 1, 2, 3]}), "layer 0: every head is pruned"),
    "native without effect": (native(pruned={}), "prunes no head"),
    "provenance is a string": (native(provenance="me"), "provenance is not an object"),
    "NaN in the provenance": (native(provenance={"rate": float("nan")}), "provenance cannot be written as JSON"),
    "1e400 in the provenance": (json.dumps(NATIVE)[:-1] + ', "provenance": {"x": 1e400}}', "provenance cannot be"),
    # fields that a format has not, or that disagree
    "native with another name": (native(scales={"0": 1.5}), "'scales' is not a field of s4convert-mask/1; remove it"),
    "native with both names": (native(pruned_heads={"0": [1]}), "'pruned_heads' is not a field of s4convert-mask/1"),
    "calibration with kept heads": (calibration(kept_heads={"0": [1]}), "'kept_heads' is not a field of an S4"),
    "calibration with scale": (calibration(scale={"0": 1.5}), "'scale' is not a field of an S4 calibration file"),
    "calibration with scores": (calibration(saliency_scores=SCORES), "'saliency_scores' is not a field of an S4"),
    "listed with scale": ({"pruned_heads": {"0": [1]}, "scale": {"0": 2.0}}, "'scale' is not a field of a pruned_h"),
    "rows with scale": ({"pruned_heads": [[0, 1]], "scale": {"0": 2.0}}, "'scale' is not a field of a pruned_heads"),
    "listed with a layer beside": ({"pruned_heads": {"0": [1]}, "1": [2]}, "'1' is not a field of a pruned_heads"),
    "bare with a note": ({"0": [1], "note": "mine"}, "'note' is not a layer number"),
    "a long name": ({"x" * 5000: [1]}, "xxx...xxx"),
    "calibration of other layers": (calibration(num_layers=32), "num_layers is 32, but the checkpoint has 3"),
    "calibration of other heads": (calibration(num_heads=32), "num_heads is 32, but the checkpoint has 4"),
    "listed of other heads": ({"pruned_heads": {"0": [1]}, "num_heads": 8}, "num_heads is 8, but the checkpoint has 4"),
    "rows of other layers": ({"pruned_heads": [[0, 1]], "num_layers": 4}, "num_layers is 4, but the checkpoint has 3"),
    "bare of other layers": ({"0": [1], "num_layers": 4.0}, "num_layers is 4.0, but the checkpoint has 3"),
    "kept of other layers": (KEPT | {"num_layers": 4}, "num_layers is 4, but the checkpoint has 3"),
    # rows
    "row of one": ({"pruned_heads": [[0, 1], [0]]}, "row 1: [0] is neither [layer, head] nor [layer, head, score]"),
    "row of four": ({"pruned_heads": [[0, 1, 1, 0]]}, "row 0: [0, 1, 1, 0] is neither [layer, head] nor"),
    "row is a number": ({"pruned_heads": [7]}, "row 0: 7 is neither [layer, head] nor"),
    "row of another layer": ({"pruned_heads": [[3, 1]]}, "row 0: layer 3: out of range"),
    "row of a negative layer": ({"pruned_heads": [[-1, 1]]}, "row 0: layer -1: out of range"),
    "row of layer true": ({"pruned_heads": [[True, 1]]}, "row 0: True is not a layer number"),
    "row of half a head": ({"pruned_heads": [[0, 1.5]]}, "row 0: layer 0: 1.5 is not a head number"),
    "row of another head": ({"pruned_heads": [[2, 0], [0, 4]]}, "row 1: layer 0, head 4: out of range"),
    "row twice": ({"pruned_heads": [[0, 1], [2, 0], [0, 1, 0.5]]}, "layer 0, head 1: listed twice"),
    "row with NaN": ('{"pruned_heads": [[0, 1, NaN]]}', "row 0: layer 0, head 1: the score nan is not a finite"),
    "row with 1e400": ('{"pruned_heads": [[0, 1, 1e400]]}', "row 0: layer 0, head 1: the score inf is not a finite"),
    "row with a word": ({"pruned_heads": [[0, 1, "low"]]}, "row 0: layer 0, head 1: the score 'low' is not a finite"),
    "row with true": ({"pruned_heads": [[0, 1, True]]}, "row 0: layer 0, head 1: the score True is not a finite"),
    "rows of a whole layer": ({"pruned_heads": [[1, 0], [1, 1], [1, 2], [1, 3]]}, "layer 1: every head is pruned"),
    "no rows": ({"pruned_heads": []}, "prunes no head"),
    # kept heads
    "kept, another total": (kept(total=32), "total is 32, but the checkpoint has 4 heads"),
    "kept, total missing": ({"components": {"attention_heads": {"kept": {}}}}, "total is None, but the checkpoint"),
    "kept, no kept": ({"components": {"attention_heads": {"total": 4}}}, "kept is not an object"),
    "kept, no attention": ({"components": {"ffn": {}}}, "components has no object attention_heads"),
    "kept, a list": ({"components": []}, "components has no object attention_heads"),
    "kept, and more pruned": (
        {"components": KEPT["components"] | {"ffn": {"kept": {"0": [1]}}}},
        "components has 'ffn', but only attention_heads can be pruned here",
    ),
    "kept, and pruned": (kept(pruned={"0": [1]}), "attention_heads has 'pruned', which is not known"),
    "kept, beside pruned": (KEPT | {"pruned_heads": {"0": [1]}}, "'pruned_heads' is not a field of a components file"),
    "kept, layer missing": (kept(kept={"0": [1], "2": [0]}), "layer 1: missing; each of the 3 layers needs its list"),
    "kept, none": (kept(kept={"0": [1], "1": [], "2": [0]}), "layer 1: every head is pruned"),
    "kept, twice": (kept(kept={"0": [1, 1], "1": [2], "2": [0]}), "layer 0, head 1: listed twice"),
    "kept, out of range": (kept(kept={"0": [1], "1": [4], "2": [0]}), "layer 1, head 4: out of range"),
    "kept, flags": (
        kept(kept={"0": [0, 1, 1, 0], "1": [1, 1, 1, 1], "2": [1, 0, 0, 0]}),
        "layer 0: [0, 1, 1, 0] may be flags or head numbers; for flags say what a 1 means with `mask_polarity='keep'`",
    ),
    "kept, all": (kept(kept={str(layer): [0, 1, 2, 3] for layer in range(3)}), "prunes no head"),
    # flags that do not say what a 1 means
    "list of flags": (FLAGS, "does not say which are pruned; say what a 1 means with `mask_polarity='keep'` or `mask_"),
    "list of booleans": ([[bool(f) for f in row] for row in FLAGS], "does not say which are pruned"),
    "list of too few layers": (FLAGS[:2], "has flags of 2 layers, but the checkpoint has 3"),
    "list of too many layers": ([*FLAGS, FLAGS[0]], "has flags of 4 layers, but the checkpoint has 3"),
    "list of short layers": ([row[:3] for row in FLAGS], "layer 0: has 3 flags for 4 heads"),
    "list of numbers": ([0, 1, 1, 0], "layer 0: 0 is not a list of flags"),
    "list of rows": ([[0, 1], [0, 2], [2, 0]], "layer 0: has 2 flags for 4 heads"),
    "empty list": ([], "has flags of 0 layers, but the checkpoint has 3"),
    "list with a two": ([*FLAGS[:2], [0, 2, 0, 0]], "layer 2, head 1: 2 is neither 0 nor 1"),
    "list with a half": ([*FLAGS[:2], [0, 0.5, 0, 0]], "layer 2, head 1: 0.5 is neither 0 nor 1"),
    "list with NaN": ("[[0, NaN, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]", "layer 0, head 1: nan is neither 0 nor 1"),
    "list with null": ([*FLAGS[:2], [0, None, 0, 0]], "layer 2, head 1: None is neither 0 nor 1"),
    "list with words": ([*FLAGS[:2], ["keep"] * 4], "layer 2, head 0: 'keep' is neither 0 nor 1"),
    "list too deep": ([[[0], [1], [1], [0]]] * 3, "layer 0, head 0: [0] is neither 0 nor 1"),
    "flags as fractions": ({str(n): [float(f) for f in row] for n, row in enumerate(FLAGS)}, "may be flags or head"),
    # scores
    "scores, no schedule": (SCORES, "holds scores, not a mask; give `rate` and `schedule`"),
    "native scores, no schedule": (NATIVE_SCORES, "holds scores, not a mask; give `rate` and `schedule`"),
    "saliency, no schedule": ({"saliency_scores": SCORES}, "holds scores, not a mask; give `rate` and `schedule`"),
    "saliency of too few heads": ({"saliency_scores": [[0.5, 0.1]] * 3}, "has scores of 2 heads, but the checkpoint"),
    "saliency beside a mask": ({"saliency_scores": SCORES, "pruned_heads": {"0": [1]}}, "'saliency_scores' is not a f"),
    # factors
    "scale is a number": (native(scale=1.5), "scale is not an object"),
    "scale is null": (native(scale=None), "scale is not an object"),
    "scale of a layer that keeps its heads": (
        native(scale={"1": 1.5}),
        "scale: layer 1 is not a layer that loses heads",
    ),
    "scale of no layer": (native(scale={"3": 1.5}), "scale: layer 3 is not a layer that loses heads"),
    "scale of a word": (native(scale={"all": 1.5}), "'all' is not a layer number"),
    "scale is NaN": (native(scale={"0": float("nan")}), "scale, layer 0: nan is not a factor"),
    "scale is infinite": (native(scale={"0": float("inf")}), "scale, layer 0: inf is not a factor"),
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


@pytest.mark.parametrize("content", [{"9" * 5000: [1]}, native(scale={"9" * 5000: 1.5})], ids=["layer", "scale"])
def test_a_layer_of_5000_digits_is_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(MaskError, match="layer"):
        load(tmp_path, content)


def test_two_factors_for_one_layer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="scale"):
        load(tmp_path, native(scale={"0": 1.5, "00": 2.0}))


# --- what the caller says beyond the file -------------------------------------------------------------------


@pytest.mark.parametrize("polarity", ["keep", "prune"])
@pytest.mark.parametrize("as_written", [int, bool, float])
@pytest.mark.parametrize("spelling", ["list", "bare object", "pruned_heads", "pruned_heads list"])
def test_flags_are_read_with_the_polarity_that_the_caller_gives(
    tmp_path: Path, polarity: str, as_written: type, spelling: str
) -> None:
    rows = [[as_written(flag if polarity == "prune" else 1 - flag) for flag in row] for row in FLAGS]
    by_layer = {str(layer): row for layer, row in enumerate(rows)}
    content = {
        "list": rows,
        "bare object": by_layer,
        "pruned_heads": {"pruned_heads": by_layer},
        "pruned_heads list": {"pruned_heads": rows},
    }[spelling]
    mask, how_read = load(tmp_path, content, polarity=polarity)
    assert mask == HeadMask(4, PRUNED)
    assert how_read.endswith(f"1 = {'keep' if polarity == 'keep' else 'pruned'}, 3 of 12 heads")


def test_kept_flags_need_their_polarity_too(tmp_path: Path) -> None:
    flags_kept = {str(layer): [1 - flag for flag in row] for layer, row in enumerate(FLAGS)}
    mask, how_read = load(tmp_path, kept(kept=flags_kept), polarity="keep")
    assert mask == HeadMask(4, PRUNED)
    assert how_read == "kept heads, 1 = kept, 3 of 12 heads"


@pytest.mark.parametrize(
    "content",
    [
        SCORES,
        NATIVE_SCORES,
        {"saliency_scores": SCORES},
        {"saliency_scores": list(SCORES.values())},
        {f"{layer}-{head}": [score, score] for layer, row in SCORES.items() for head, score in enumerate(row)},
        SCORES | {"num_layers": 3, "num_heads": 4},
    ],
    ids=["by layer", "native", "saliency_scores", "saliency list", "by layer and head", "with sizes"],
)
def test_scores_become_a_mask_by_a_schedule(tmp_path: Path, content: object) -> None:
    mask, how_read = load(tmp_path, content, schedule=BANDS)
    assert mask.pruned == PRUNED
    assert how_read == "scores, bands:0:0.5,1:0,2:0.25, 3 of 12 heads"


@pytest.mark.parametrize(
    ("content", "hint", "message"),
    [
        (CALIBRATION, {"polarity": "keep"}, "where 1 = pruned; leave `mask_polarity='keep'` out"),
        (NATIVE, {"polarity": "prune"}, "so `mask_polarity` does not apply; leave it out"),
        ({"0": [1, 2], "2": [0]}, {"polarity": "prune"}, "layer 1: missing; each of the 3 layers needs its flags"),
        ({"0": [1, 2], "1": [3], "2": [0]}, {"polarity": "keep"}, "for listed head numbers leave `mask_polarity` out"),
        ({"pruned_heads": [[0, 1], [2, 0]]}, {"polarity": "prune"}, "has flags of 2 layers"),
        (KEPT, {"polarity": "prune"}, "so a 1 cannot mean pruned; leave `mask_polarity='prune'` out"),
        (KEPT, {"polarity": "keep"}, "layer 0: has 2 flags for 4 heads"),
        (SCORES, {"polarity": "keep", "schedule": QUARTER}, "holds scores, so `mask_polarity` does not apply"),
        (NATIVE, {"schedule": QUARTER}, "not scores; leave `rate` and `schedule` out"),
        (CALIBRATION, {"schedule": QUARTER}, "not scores; leave `rate` and `schedule` out"),
        (KEPT, {"schedule": QUARTER}, "not scores; leave `rate` and `schedule` out"),
        ({"0": [1]}, {"schedule": QUARTER}, "not scores; leave `rate` and `schedule` out"),
        ({"pruned_heads": [[0, 1]]}, {"schedule": QUARTER}, "not scores; leave `rate` and `schedule` out"),
        (FLAGS, {"schedule": QUARTER}, "not scores; leave `rate` and `schedule` out"),
        (FLAGS, {"schedule": QUARTER, "polarity": "keep"}, "not scores; leave `rate` and `schedule` out"),
    ],
)
def test_a_hint_that_the_file_contradicts_is_refused(
    tmp_path: Path, content: object, hint: dict[str, Any], message: str
) -> None:
    with pytest.raises(MaskError, match=re.escape(message)):
        load(tmp_path, content, **hint)


def test_a_polarity_that_agrees_with_a_calibration_file_is_fine(tmp_path: Path) -> None:
    assert load(tmp_path, CALIBRATION, polarity="prune")[0].pruned == PRUNED


def test_a_polarity_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`mask_polarity` 'drop' is none of keep, prune"):
        load(tmp_path, FLAGS, polarity="drop")


@pytest.mark.parametrize("heads", [[0, 1], [1, 0], [0, 0], [1, 1]])
@pytest.mark.parametrize("spelling", ["object", "rows"])
def test_with_two_heads_a_list_of_two_is_ambiguous_and_the_message_says_what_settles_it(
    tmp_path: Path, heads: list[int], spelling: str
) -> None:
    with pytest.raises(MaskError, match="may be flags or head numbers") as caught:
        load(tmp_path, {"pruned_heads": {"0": heads} if spelling == "object" else [heads] * 3}, TWO_HEADS)
    for way_out in ("`mask_polarity", "total_pruned_heads", "total_heads", "s4convert-mask/1"):
        assert way_out in str(caught.value)


def test_kept_lists_are_head_numbers_as_soon_as_one_of_them_cannot_be_flags(tmp_path: Path) -> None:
    content = {"components": {"attention_heads": {"kept": {"0": [0, 1], "1": [1], "2": [1, 0]}, "total": 2}}}
    assert load(tmp_path, content, TWO_HEADS)[0].pruned == ((), (0,), ())


# --- the file itself ----------------------------------------------------------------------------------------


def test_a_mask_that_is_missing_is_an_error_of_the_request(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match=r"mask\.json: no such file"):
        load_mask(tmp_path / "mask.json", GEOMETRY)


def test_a_directory_and_a_pipe_are_no_masks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(MaskError, match="is not a regular file"):
            load_mask(path, GEOMETRY)


def test_a_mask_that_the_disk_refuses_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "mask.json").write_text(json.dumps(NATIVE))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError, match="cannot be read: Permission denied"):
        load_mask(tmp_path / "mask.json", GEOMETRY)


def test_a_file_larger_than_64_mb_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mask.json"
    path.touch()
    os.truncate(path, 64 * 2**20 + 1)
    monkeypatch.setattr(Path, "open", lambda *args: pytest.fail("it was read"))
    with pytest.raises(MaskError, match="has 67,108,865 bytes, and at most 67,108,864 are read"):
        load_mask(path, GEOMETRY)
    assert mask_file.MAX_BYTES == 64 * 2**20


def test_how_a_file_was_read_is_no_part_of_the_mask(tmp_path: Path) -> None:
    mask, how_read = load(tmp_path, NATIVE)
    assert how_read
    assert mask == HeadMask(4, PRUNED)
    assert "how_read" not in mask.to_json()


def test_json_is_read_without_torch(tmp_path: Path) -> None:
    (tmp_path / "mask.json").write_text(json.dumps(NATIVE))
    code = (
        "import sys; from s4convert.checkpoint import Geometry; from s4convert.mask.files import load_mask; "
        f"load_mask({str(tmp_path / 'mask.json')!r}, Geometry(3, 4, 2, 2, 8)); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
