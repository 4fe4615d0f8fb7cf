"""Scores: the native file, other spellings, and what is refused by layer and head."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s4convert.checkpoint import Geometry
from s4convert.errors import MaskError, UsageError
from s4convert.mask import HeadScores
from s4convert.mask.files import load_scores

GEOMETRY = Geometry(num_layers=2, num_heads=3, num_kv_heads=3, head_dim=2, hidden_size=6)
ROWS = ((0.5, -1.25, 3.0), (1e-9, 2.0, 0.1))
LAYERS = {str(layer): list(row) for layer, row in enumerate(ROWS)}
NATIVE: dict[str, Any] = {
    "format": "s4convert-scores/1",
    "num_layers": 2,
    "num_heads": 3,
    "scores": LAYERS,
    "provenance": {"metric": "energy", "residual_energy": [2.0, 4.0]},
}
BY_HEAD = {f"{layer}-{head}": [score] for layer, row in enumerate(ROWS) for head, score in enumerate(row)}


def load(tmp_path: Path, content: object, geometry: Geometry | None = None) -> HeadScores:
    path = tmp_path / "scores.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return load_scores(path, geometry)


def test_the_native_file_is_exactly_this(tmp_path: Path) -> None:
    scores = HeadScores(2, 3, ROWS, {"metric": "energy", "residual_energy": [2.0, 4.0]})
    assert scores.to_json() == NATIVE
    scores.save(tmp_path / "written.json")
    assert json.loads((tmp_path / "written.json").read_text()) == NATIVE
    assert load_scores(tmp_path / "written.json", GEOMETRY) == scores
    with pytest.raises(UsageError, match="exists"):
        scores.save(tmp_path / "written.json")


@given(st.lists(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1))
def test_every_finite_score_is_read_back_to_the_bit(rows: list[list[float]]) -> None:
    from s4convert.mask.formats.scores import read_scores

    scores = HeadScores(len(rows), 3, rows)
    again = read_scores(json.loads(json.dumps(scores.to_json())), None)
    assert [list(map(math.copysign, row, row)) for row in again.scores] == [
        list(map(math.copysign, row, row)) for row in rows
    ]


@pytest.mark.parametrize("geometry", [None, GEOMETRY])
@pytest.mark.parametrize(
    "content",
    [
        LAYERS,
        dict(reversed(LAYERS.items())),
        LAYERS | {"num_layers": 2, "num_heads": 3},
        BY_HEAD,
        {name: [2 * score, 0.0] for name, (score,) in BY_HEAD.items()},
        {name: score for name, (score,) in BY_HEAD.items()},
        {"saliency_scores": LAYERS},
        {"saliency_scores": BY_HEAD, "num_heads": 3},
        {"saliency_scores": list(map(list, ROWS))},
        NATIVE,
    ],
)
def test_every_spelling_gives_the_same_scores(tmp_path: Path, content: object, geometry: Geometry | None) -> None:
    assert load(tmp_path, content, geometry).scores == ROWS


def test_arrays_become_plain_floats() -> None:
    scores = HeadScores(2, 3, np.array(ROWS))
    assert scores.scores == ROWS
    assert all(type(score) is float for row in scores.scores for score in row)


def test_normalisers_are_part_of_the_provenance() -> None:
    assert HeadScores(2, 3, ROWS, {"residual_energy": [2, 4]}).normalisers == (2.0, 4.0)
    assert HeadScores(2, 3, ROWS).normalisers is None


def native(**changes: object) -> dict[str, object]:
    return {**NATIVE, **changes}


REFUSED: dict[str, tuple[object, str]] = {
    "no JSON": ("0.5", "holds no scores"),
    "cut off": ('{"0": [0.5', "is not JSON ("),
    "a mask": ({"pruned_heads": {"0": [1]}}, "holds no scores"),
    "a bare mask": ({"0": [1, 2]}, "holds no scores"),
    "flags as fractions": ({"0": [0.0, 1.0, 1.0], "1": [1.0, 1.0, 0.0]}, "holds no scores"),
    "another format": (native(format="s4convert-mask/1"), "holds no scores"),
    "NaN": ('{"0": [0.5, 0.1, NaN], "1": [0.5, 0.1, 0.2]}', "layer 0, head 2: the score nan is not a finite number"),
    "infinity": ('{"0": [0.5, 0.1, 2], "1": [-Infinity, 0.1, 0.2]}', "layer 1, head 0: the score -inf is not a fin"),
    "1e400": ('{"0": [0.5, 0.1, 2], "1": [0.5, 1e400, 0.2]}', "layer 1, head 1: the score inf is not a finite"),
    "an integer that no float holds": ({"0": [0.5, 10**400, 0]}, "layer 0, head 1: the score 1000000"),
    "NaN in saliency by layer": (
        '{"saliency_scores": {"0": [0.5, NaN]}}',
        "layer 0, head 1: the score nan is not a fin",
    ),
    "NaN in saliency rows": ('{"saliency_scores": [[0.5, NaN]]}', "layer 0, head 1: the score nan is not a finite"),
    "native, NaN": (json.dumps(NATIVE).replace("[0.5, ", "[NaN, "), "layer 0, head 0: the score nan is not a finite"),
    "native, NaN of a normaliser": (
        native(provenance={"residual_energy": [1.0, math.nan]}),
        "provenance cannot be written as JSON",
    ),
    "NaN among samples": ('{"0-0": [0.5, NaN]}', "layer 0, head 0: the score nan is not a finite number"),
    "samples that add up to infinity": ({"0-0": [1e308, 1e308]}, "layer 0, head 0: the scores add up to infinity"),
    "no samples": ({"0-0": []}, "layer 0, head 0: has no score"),
    "a word": ({"0": [0.5, "high", 0.1]}, "layer 0, head 1: the score 'high' is not a finite number"),
    "true": ({"0": [0.5, True, 0.1]}, "layer 0, head 1: the score True is not a finite number"),
    "null": ({"0": [0.5, None, 0.1]}, "layer 0, head 1: the score None is not a finite number"),
    "a layer too short": ({"0": [0.5, 0.1, 0.2], "1": [0.5, 0.1]}, "layer 1: has 2 scores for 3 heads"),
    "a layer that is a number": ({"0": [0.5, 0.1, 0.2], "1": 0.5}, "layer 1: 0.5 is not a list of scores"),
    "a layer missing": ({"0": [0.5], "2": [0.1]}, "layer 1: has no scores, but layer 2 has"),
    "a head missing": ({"0-0": [0.5], "0-2": [0.5]}, "layer 0, head 1: has no scores, but layer 0, head 2 has"),
    "a layer of heads missing": ({"1-0": [0.5]}, "layer 0: has no scores, but layer 1 has"),
    "layers of other lengths": ({"0-0": [0.5], "0-1": [0.5], "1-0": [0.1]}, "layer 1: has 1 scores for 2 heads"),
    "heads by two names": ({"0-0": [0.5], "0-00": [0.5]}, "holds no scores"),
    "a note": ({"saliency_scores": LAYERS, "scale": 2}, "'scale' is not a field of a saliency_scores file; remove it"),
    "saliency of a word": ({"saliency_scores": "high"}, "saliency_scores is neither an object of layers nor a list"),
    "saliency of nothing": ({"saliency_scores": {}}, "saliency_scores is neither an object of layers nor a list"),
    "saliency of other layers": ({"saliency_scores": LAYERS, "num_layers": 3}, "num_layers is 3, but there are scores"),
    "layers of another number": (LAYERS | {"num_heads": 4}, "num_heads is 4, but there are scores of 3"),
    "native, other layers": (native(num_layers=3), "has scores of 2 layers, but num_layers is 3"),
    "native, other heads": (native(num_heads=4), "layer 0: has 3 scores for 4 heads"),
    "native, half a layer": (native(num_layers=2.0), "num_layers is 2.0, not a number of layers"),
    "native, no layers": (native(scores={}), "scores is not an object that maps layers to lists of scores"),
    "native, a list": (native(scores=list(ROWS)), "scores is not an object that maps layers to lists of scores"),
    "native, another field": (native(scale={}), "'scale' is not a field of s4convert-scores/1; remove it"),
    "native, provenance": (native(provenance="me"), "provenance is not an object"),
    "native, NaN in the provenance": (native(provenance={"x": math.nan}), "provenance cannot be written as JSON"),
    "normalisers, too few": (
        native(provenance={"residual_energy": [1.0]}),
        "are not a list of 2 numbers, one per layer",
    ),
    "normalisers, zero": (
        native(provenance={"residual_energy": [1.0, 0.0]}),
        "layer 1: the normaliser 0.0 is not",
    ),
    "normalisers, a word": (native(provenance={"residual_energy": "ab"}), "are not a list of 2 numbers"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_with_the_reason(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)) as caught:
        load(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'scores.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0.5, math.nan]], "layer 0, head 1: the score nan"),
        ([[0.5, np.float32(np.inf)]], "layer 0, head 1: the score"),
        ([[0.5, "1"]], "layer 0, head 1: the score '1'"),
        ([0.5, 0.25], "has scores of 2 layers, but num_layers is 1"),
        ([0.5], "layer 0: 0.5 is not a row of scores"),
        ([], "has scores of 0 layers"),
    ],
)
def test_scores_made_in_python_are_checked_as_strictly(rows: Any, message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)):
        HeadScores(1, 2, rows)


def test_a_geometry_that_does_not_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="has scores of 2 layers, but the checkpoint has 5"):
        load(tmp_path, NATIVE, Geometry(5, 3, 3, 2, 6))
