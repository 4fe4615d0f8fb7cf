"""Pictures of a study, drawn by matplotlib where it is installed."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..disk import write_output
from ..errors import StorageError
from .summary import KINDS, Row, Summary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOW_TO_GET_PLOTS = "no plots without matplotlib; install s4convert[study] and run `summarise`"


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def plot(summary: Summary, directory: Path) -> tuple[str, ...]:
    """Draw *summary* into *directory*, each picture as SVG and PNG; the names of the SVG files.

    ``accuracy``: accuracy against heads pruned, image and text apart; ``error``: E against the rate; ``pareto``: the
    points that no other beats in both. A picture of what was not measured is left out.

    Raises:
        StorageError: the disk refused.
    """
    drawn = {"accuracy": _accuracy(summary), "error": _error(summary), "pareto": _pareto(summary)}
    for name, figure in drawn.items():
        if figure is not None:
            _save(figure, directory, name)
    return tuple(f"{name}.svg" for name, figure in drawn.items() if figure is not None)


def _save(figure: Figure, directory: Path, name: str) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):  # the same points, the same bytes
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    ascii_text = text.getvalue().encode("ascii", "xmlcharrefreplace").decode("ascii")
    write_output(directory / f"{name}.svg", ascii_text, force=True)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    try:
        (directory / f"{name}.png").write_bytes(picture.getvalue())
    except OSError as error:
        raise StorageError(f"{directory / name}.png: cannot be written: {error.strerror or error}") from error


def _figure(panels: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes


def _accuracy(summary: Summary) -> Figure | None:
    """A panel for images and one for text: the best point of every compensation at each number of heads, by a line."""
    first = summary.baseline.evaluation
    kinds = {} if first is None else {n: k for n, k in KINDS.items() if k is not None and first.accuracy(image=k)}
    if first is None or not kinds or not summary.done:
        return None
    figure, axes = _figure(len(kinds))
    for ax, (name, image) in zip(axes, kinds.items(), strict=True):
        base = first.accuracy(image=image)
        assert base is not None
        ax.axhline(100 * base.value, color="black", linewidth=1, label="unpruned")
        ax.axhspan(100 * base.low, 100 * base.high, color="black", alpha=0.08)
        by_compensation = _lines(summary, partial(_accuracy_of, image=image))
        for number, (compensation, rows) in enumerate(by_compensation.items()):
            shares = [row.evaluation.accuracy(image=image) for row in rows if row.evaluation is not None]
            values = [100 * one.value for one in shares if one is not None]
            below = [100 * (one.value - one.low) for one in shares if one is not None]
            above = [100 * (one.high - one.value) for one in shares if one is not None]
            shifted = [row.heads_pruned + 0.15 * number for row in rows]  # so that no bar hides another
            ax.errorbar(shifted, values, (below, above), marker="o", markersize=3, capsize=2, label=compensation)
        ax.set_title(name.replace("_accuracy", " questions"))
        ax.set_xlabel("heads pruned")
    axes[0].set_ylabel("accuracy, % (95 % intervals)")
    axes[0].legend(fontsize="small")
    return figure


def _accuracy_of(row: Row, image: bool | None) -> float:
    found = None if row.evaluation is None else row.evaluation.accuracy(image=image)
    return -1.0 if found is None else found.value


def _lines(summary: Summary, worth: Callable[[Row], float]) -> dict[str, list[Row]]:
    """For each compensation, the point of most *worth* at every number of pruned heads, in their order."""
    lines: dict[str, dict[int, Row]] = {}
    for row in summary.done:
        line = lines.setdefault(row.compensation or "", {})
        if row.heads_pruned not in line or worth(row) > worth(line[row.heads_pruned]):
            line[row.heads_pruned] = row
    return {name: [line[heads] for heads in sorted(line)] for name, line in lines.items()}


def _error(summary: Summary) -> Figure | None:
    """E against the rate: the best point of every compensation by a line."""

    def error(row: Row) -> float | None:
        return None if row.measured is None else row.measured.error

    if not any(error(row) is not None for row in summary.done):
        return None
    figure, (ax, *_) = _figure(1)
    for compensation, rows in _lines(summary, lambda row: -(error(row) or 0.0)).items():
        measured: list[tuple[float, Any]] = [(100 * row.rate, error(row)) for row in rows if error(row) is not None]
        ax.plot(*zip(*measured, strict=True), marker="o", markersize=3, label=compensation)
    ax.set_xlabel("heads pruned, %")
    ax.set_ylabel("E, summed over layers")
    ax.set_yscale("log")
    ax.legend(fontsize="small")
    return figure


def _pareto(summary: Summary) -> Figure | None:
    """Accuracy against the rate: every point, and by a line those that no other beats in both."""
    first = summary.baseline.evaluation
    if first is None or first.accuracy() is None or not summary.done:
        return None
    figure, (ax, *_) = _figure(1)
    for compensation in dict.fromkeys(row.compensation for row in summary.done):
        rows = [row for row in summary.done if row.compensation == compensation]
        points = [(100 * row.rate, 100 * _accuracy_of(row, None)) for row in rows]
        ax.plot(*zip(*points, strict=True), linestyle="", marker="o", markersize=3, alpha=0.7, label=compensation)
    edge = [(100 * row.rate, 100 * _accuracy_of(row, None)) for row in front(summary)]
    ax.plot(*zip(*edge, strict=True), color="black", linewidth=1, label="Pareto front")
    ax.set_xlabel("heads pruned, %")
    ax.set_ylabel("accuracy, %")
    ax.legend(fontsize="small")
    return figure


def front(summary: Summary) -> list[Row]:
    """The points, the baseline among them, than which no other prunes more and is as accurate; by rate."""
    rows = [summary.baseline, *summary.done]
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row.rate, -_accuracy_of(row, None))):
        if not best or _accuracy_of(row, None) > _accuracy_of(best[-1], None):
            best.append(row)
    return best[::-1]
