"""A report as people meet it in a notebook: in a line, as a table, as a data frame."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import s4convert
from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.errors import UsageError
from s4convert.mask import HeadMask
from s4convert.verify.report import Report
from tests.conftest import MINI_LLAVA

MASK = HeadMask(8, ((), (1, 4), (), (), (), (3,), (), ()))


def moments(layer: int) -> LayerMoments:
    return LayerMoments(Moments.of(np.random.default_rng(layer).normal(size=(300, 128))))


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Report]:
    """Converts the mini LLaVA and returns the report."""

    def convert(**options: Any) -> Report:
        return s4convert.convert(MINI_LLAVA, tmp_path_factory.mktemp("report") / "out", MASK, card=False, **options)

    return convert


@pytest.fixture(scope="module")
def report(make: Callable[..., Report]) -> Report:
    return make(compensation="least-squares", statistics=moments)


@pytest.fixture(scope="module")
def of_bytes_alone(make: Callable[..., Report]) -> Report:
    return make(check_behaviour=False)


def test_it_is_its_verdict_in_angle_brackets(report: Report, of_bytes_alone: Report) -> None:
    assert repr(of_bytes_alone) == "<Report: OK, 3 of 64 heads silenced in 2 of 8 layers>"
    beginning = "<Report: OK, 3 of 64 heads silenced in 2 of 8 layers; each equals the hooked original to "
    assert re.fullmatch(re.escape(beginning) + r"\S+ \(tolerance \S+\)>", repr(report))
    assert str(report) == report.to_text()


def cells(html: str, tag: str) -> list[str]:
    return re.findall(f"<{tag}>(.*?)</{tag}>", html)


def test_a_notebook_shows_the_verdict_and_a_row_for_each_layer(report: Report) -> None:
    html = report._repr_html_()
    assert cells(html, "p") == [report.verdict]
    names = cells(html, "th")
    rows = [dict(zip(names, cells(row, "td"), strict=True)) for row in cells(html, "tr")[1:]]
    assert [row["layer"] for row in rows] == [str(layer) for layer in range(8)]
    assert [row["heads_pruned"] for row in rows] == ["0", "2", "0", "0", "0", "1", "0", "0"]
    shown = report.to_json()["behaviour"]["layers"][1]
    assert float(rows[1]["relative_delta"]) == shown["relative_delta"] > 0
    # Only layers that lose heads are fitted, and have a factor.
    assert [row["fit_error"] != "" for row in rows] == [layer in (1, 5) for layer in range(8)]
    assert 0 < float(rows[1]["fit_error"]) < 1


def test_a_notebook_shows_the_heads_alone_where_nothing_else_is_known(of_bytes_alone: Report) -> None:
    html = of_bytes_alone._repr_html_()
    assert cells(html, "th") == ["layer", "heads_pruned"]
    assert cells(html, "td") == [text for layer in range(8) for text in (str(layer), str(len(MASK.pruned[layer])))]


class FrameOfRows:
    """What is asked of pandas' data frame."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.index = rows, ""

    def set_index(self, name: str) -> FrameOfRows:
        self.index = name
        return self


def test_pandas_gets_a_row_for_each_layer(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = ModuleType("pandas")
    pandas.DataFrame = FrameOfRows  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame: Any = report.to_frame()
    assert frame.index == "layer"
    assert [(row["layer"], row["heads_pruned"]) for row in frame.rows] == [
        (layer, len(heads)) for layer, heads in enumerate(MASK.pruned)
    ]
    behaviour = report.to_json()["behaviour"]["layers"]
    assert [row["own_error"] for row in frame.rows] == [row["own_error"] for row in behaviour]
    for modality in ("text", "image"):
        for other in ("original", "reference"):
            told = [row["apart"][modality][other] for row in behaviour]
            assert [row[f"{modality}_cosine_{other}"] for row in frame.rows] == [one["cosine"] for one in told]
            assert [row[f"{modality}_max_abs_delta_{other}"] for row in frame.rows] == [
                one["max_abs_delta"] for one in told
            ]
    assert [layer for layer, row in enumerate(frame.rows) if row["fit_error"] is not None] == [1, 5]


def test_without_pandas_a_data_frame_is_refused(report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)  # as good as not installed
    with pytest.raises(UsageError, match="a data frame needs pandas; pip install pandas, or use to_json"):
        report.to_frame()
