"""The figures of the HTML report: where marks stand in an SVG, what each says, and the table behind them.

All lengths are in units of the SVG, which are pixels on a narrow screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..mask import HeadMask
from .heatmap import ranks_of, shade_of

NO_FIGURE = "-"  # in a table, where there is none
SHAPES = ("circle", "diamond", "triangle", "square")  # a series is told by its shape as well as by its colour
_LEFT, _RIGHT, _TOP = 32, 34, 16
_PLOT_WIDTH = 286
_GREY = "#bbb"


@dataclass(frozen=True)
class Table:
    """*columns* are (a name, what it means in plain words or nothing); the first names the rows."""

    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[str]]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """The columns that need a word."""
        return [(name, meaning) for name, meaning in self.columns if meaning]


class Label(NamedTuple):
    x: float
    y: float
    text: str
    anchor: str = "middle"


class Mark(NamedTuple):
    """A mark at (x, y) which *says* something; *kind* is a shape, or a colour where it is a cell."""

    x: float
    y: float
    kind: str
    says: str


@dataclass(frozen=True)
class Figure:
    """A figure of *width* by *height*: *cells* with a *side*, *crosses* over some of them; or *marks* on *lines*.

    *legend* names the shapes that are used. *says* is what stands for the figure where it is not seen.
    """

    name: str
    says: str
    width: int
    height: int
    labels: Sequence[Label]
    table: Table
    cells: Sequence[Mark] = ()
    side: int = 0
    crosses: Sequence[tuple[float, float]] = ()
    shades: Sequence[str] = ()
    marks: Sequence[Mark] = ()
    lines: Sequence[tuple[float, str]] = ()
    legend: Sequence[tuple[str, str]] = ()


def heatmap(mask: HeadMask) -> Figure:
    """The heads of *mask* by layer and head, the pruned ones crossed out, over their saliency where that is known."""
    saliency, heads = mask.saliency, mask.num_heads
    ranks = None if saliency is None else ranks_of(saliency)
    side = max(6, min(24, _PLOT_WIDTH // heads))
    right, bottom = _LEFT + side * heads, _TOP + side * mask.num_layers
    labels = [Label(_LEFT - 4, _TOP - 5, "layer", "end"), Label(right + _RIGHT, _TOP - 5, "pruned", "end")]
    labels += [Label(_LEFT + side * (head + 0.5), bottom + 13, str(head)) for head in range(0, heads, _step(side, 18))]
    labels += [
        Label(_LEFT - 4, _TOP + side * (layer + 0.5) + 4, str(layer), "end")
        for layer in range(0, mask.num_layers, _step(side, 12))
    ]
    labels += [
        Label(right + _RIGHT, _TOP + side * (layer + 0.5) + 4, str(len(mask.pruned[layer])), "end")
        for layer in range(0, mask.num_layers, _step(side, 12))
    ]
    labels.append(Label((_LEFT + right) / 2, bottom + 28, "head"))
    cells, crosses, rows = [], [], []
    for layer, pruned in enumerate(mask.pruned):
        row = [str(layer), str(len(pruned))]
        for head in range(heads):
            gone = head in pruned
            at = _LEFT + side * head, _TOP + side * layer
            colour, says = _GREY, f"layer {layer}, head {head}: {'pruned' if gone else 'kept'}"
            if ranks is not None and saliency is not None:
                colour = "#" + "".join(f"{part:02x}" for part in shade_of(ranks[layer][head]))
                says += f", saliency {saliency[layer][head]:.3g}"
            cells.append(Mark(*at, colour, says))
            crosses += [at] * gone
            row.append(_of_head(gone, None if saliency is None else saliency[layer][head]))
        rows.append(row)
    columns = [("layer", ""), ("pruned", ""), *((str(head), "") for head in range(heads))]
    what = "pruned or kept" if saliency is None else "saliency, in brackets where the head is pruned"
    return Figure(
        "Heads" if saliency is None else "Heads over their saliency",
        f"Map of {mask.num_layers} layers by {heads} heads; the {mask.num_pruned} pruned heads are crossed out.",
        right + _RIGHT,
        bottom + 34,
        labels,
        Table(f"Every head by layer: {what}", columns, rows),
        cells,
        side - 1,
        crosses,
        () if ranks is None else ["#" + "".join(f"{part:02x}" for part in shade_of(at / 24)) for at in range(24)],
    )


def _of_head(gone: bool, score: float | None) -> str:
    if score is None:
        return "x" if gone else ""
    return f"({score:.3g})" if gone else f"{score:.3g}"


def dots(
    name: str,
    says: str,
    layers: Sequence[int],
    series: Sequence[tuple[str, str, Sequence[float | None]]],
    shown: Callable[[float], str],
    table: Table,
    *,
    bound: tuple[float, str] | None = None,
) -> Figure | None:
    """A row for each of *layers*, with a mark where each of the *series*, a name, its meaning and figures, has one.

    The axis is logarithmic; a figure of 0 stands at its left end. *bound* is a line across all rows, and its name.
    Without a figure above 0, there is no figure.
    """
    figures = [figure for _, _, of_layers in series for figure in of_layers if figure is not None]
    positive = [abs(figure) for figure in figures if figure]
    positive += [] if bound is None else [bound[0]]
    if not any(figures) or not positive:
        return None
    low, high = math.log10(min(positive)), math.log10(max(positive))
    fine = high - low < 2
    low, high = (low - 0.05, high + 0.05) if fine else (math.floor(low), math.ceil(high))
    has_zero, down = 0 in figures, max(10, min(18, 520 // len(layers)))
    start = _LEFT + (40 if has_zero else 4)
    bottom = _TOP + down * len(layers)

    def x_of(figure: float) -> float:
        share = (math.log10(abs(figure)) - low) / (high - low) if figure else 0
        return round(start + share * (_LEFT + _PLOT_WIDTH - start), 1) if figure else _LEFT + 6

    steps = [
        factor * 10**decade
        for decade in range(math.floor(low), math.ceil(high) + 1)
        for factor in ((1, 2, 5) if fine else (1,))
        if low <= math.log10(factor * 10**decade) <= high
    ]
    every = -(-len(steps) // 6)
    labels = [Label(_LEFT - 4, _TOP - 5, "layer", "end")]
    labels += [Label(x_of(step), bottom + 13, f"{step:g}") for step in steps[::every]]
    labels += [Label(_LEFT + 6, bottom + 13, "0")] if has_zero else []
    labels += [
        Label(_LEFT - 4, _TOP + down * (at + 0.5) + 4, str(layers[at]), "end")
        for at in range(0, len(layers), _step(down, 12))
    ]
    lines = [(x_of(step), "grid") for step in steps]
    if bound is not None:
        lines.append((x_of(bound[0]), "bound"))
        labels.append(Label(min(x_of(bound[0]), _LEFT + _PLOT_WIDTH - 30), _TOP - 5, bound[1]))
    marks = [
        Mark(x_of(figure), _TOP + down * (at + 0.5), shape, f"layer {layers[at]}: {of_series} {shown(figure)}")
        for shape, (of_series, _, of_layers) in zip(SHAPES, series, strict=False)
        for at, figure in enumerate(of_layers)
        if figure is not None
    ]
    legend = [(shape, f"{called}: {means}") for shape, (called, means, _) in zip(SHAPES, series, strict=False)]
    size = _LEFT + _PLOT_WIDTH + 16, bottom + 20
    return Figure(name, says, *size, labels, table, marks=marks, lines=lines, legend=legend)


def _step(pixels: int, wanted: int) -> int:
    """Every how many rows of so many *pixels* a label has the room that is *wanted*."""
    return next(step for step in (1, 2, 4, 5, 10, 20) if step * pixels >= wanted)
