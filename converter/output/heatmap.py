"""Pruned heads by layer and head, to look at: in a terminal, or as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import StorageError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

PRUNED = "x"
SHADES = ".:-=+*#"  # from the least salient heads to the most salient
VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # the same, as colours
INK, RED, WHITE, GREY = (51, 51, 51), (214, 39, 40), (255, 255, 255), (221, 221, 221)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")

# Each format takes what it knows of these; by itself, Pillow writes a PDF's name and the time into it.
_SAVED_AS: Mapping[str, Any] = {
    "compress_level": 3,
    "quality": 95,
    "subsampling": 0,
    "resolution": 120,
    "title": None,
    "creationDate": None,
    "modDate": None,
}

Heads = Sequence[Sequence[int]]  # the pruned heads of every layer
Saliency = Sequence[Sequence[float]]  # [layers][heads]


def text_heatmap(num_heads: int, pruned: Heads, saliency: Saliency | None = None) -> str:
    """A line per layer: a character per head, :data:`PRUNED` or a shade, and how many are pruned, if any is.

    The shades rank the heads over the whole model, so that a few large figures do not leave all others blank.
    """
    shades = None if saliency is None else ranks_of(saliency)
    lines = []
    for layer, heads in enumerate(pruned):
        row = [
            PRUNED if head in heads else "." if shades is None else SHADES[int(shades[layer][head] * len(SHADES))]
            for head in range(num_heads)
        ]
        count = f" {len(heads):>3} {'=' * len(heads)}".rstrip() if any(pruned) else ""
        lines.append(f"{layer:>5} |{''.join(row)}|{count}")
    heading = "layer  heads, and how many are pruned" if any(pruned) else "layer  heads"
    meaning = [] if shades is None else [f"heads from {SHADES[0]!r} to {SHADES[-1]!r} by saliency"]
    if any(pruned):
        meaning = [f"{PRUNED} = pruned", *(f"kept {shade}" for shade in meaning)]
    return "\n".join([heading, *lines, ", ".join(meaning)]).rstrip()


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before any work.

    Raises:
        UsageError: the file's ending is none of :data:`PICTURES`.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"{path}: is no name of a picture; end it with one of {', '.join(PICTURES)}")


def plot_heatmap(path: Path, num_heads: int, pruned: Heads, saliency: Saliency | None, title: str) -> None:
    """Draw saliency by layer and head with the pruned heads marked, and the pruned heads of each layer beside it.

    The same arguments give the same bytes under one version of Pillow. A long *title* loses its beginning.

    Raises:
        UsageError: as :func:`check_picture`.
        StorageError: the file cannot be written.
    """
    check_picture(path)
    width, height, shapes = _drawing(num_heads, pruned, saliency, title)
    try:
        if path.suffix.lower() == ".svg":
            path.write_text(_svg(width, height, shapes), encoding="utf-8")
        else:
            _raster(width, height, shapes).save(path, **_SAVED_AS)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def png_heatmap(num_heads: int, pruned: Heads, saliency: Saliency | None, title: str) -> bytes:
    """The picture that :func:`plot_heatmap` draws, as the content of a PNG file."""
    content = BytesIO()
    _raster(*_drawing(num_heads, pruned, saliency, title)).save(content, "png", **_SAVED_AS)
    return content.getvalue()


def ranks_of(saliency: Saliency) -> list[list[float]]:
    """Each figure's rank among all of them, in [0, 1); equal figures may differ by their place."""
    order = sorted((figure, layer, head) for layer, row in enumerate(saliency) for head, figure in enumerate(row))
    ranks = [[0.0] * len(row) for row in saliency]
    for rank, (_, layer, head) in enumerate(order):
        ranks[layer][head] = rank / len(order)
    return ranks


class _Rect(NamedTuple):
    x: int
    y: int
    width: int
    height: int
    colour: tuple[int, ...]


class _Cross(NamedTuple):  # in the square at (x, y), its ends *inset* from the corners
    x: int
    y: int
    side: int
    inset: float
    line: float
    colour: tuple[int, ...]


class _Text(NamedTuple):  # (x, y) is its baseline's *anchor*: start, middle or end
    x: int
    y: int
    text: str
    anchor: str = "middle"
    size: int = 15
    colour: tuple[int, ...] = INK


_Shapes = list[_Rect | _Cross | _Text]


def _drawing(num_heads: int, pruned: Heads, saliency: Saliency | None, title: str) -> tuple[int, int, _Shapes]:
    """The picture's width and height, and its shapes from the back to the front, all in pixels."""
    ranks = None if saliency is None else ranks_of(saliency)
    cell = max(12, min(36, 720 // max(num_heads, len(pruned))))
    step = next(step for step in (1, 2, 5) if step * cell >= 30)  # labels this far apart do not touch
    unit = max(cell // 4, -(-96 // num_heads))  # a bar's length for each pruned head
    left, top, scale = 64, 76, 240
    right, bottom = left + cell * num_heads, top + cell * len(pruned)
    bars, bars_end = right + 24, right + 24 + unit * num_heads
    legend, key = bottom + 64, max(bars, left + (96 if ranks is None else scale + 24))
    title = "".join(letter if letter.isprintable() else "?" for letter in title)  # XML forbids control characters
    title = title if len(title) <= 60 else f"...{title[-57:]}"
    shapes: _Shapes = [_Text(left, 32, title, "start", 18), _Text(left - 12, top - 10, "layer", "end")]
    shapes += [_Text((left + right) // 2, bottom + 42, "head"), _Text((bars + bars_end) // 2, bottom + 42, "pruned")]
    for head in range(0, num_heads, step):
        x = left + cell * head + cell // 2 - 1
        shapes += [_Rect(x, bottom + 1, 1, 4, INK), _Text(x, bottom + 21, str(head))]
    for count in sorted({0, num_heads // 2, num_heads}):
        x = bars + unit * count
        shapes += [_Rect(x, top, 1, bottom - top + 5, GREY), _Text(x, bottom + 21, str(count))]
    for layer in range(0, len(pruned), step):
        y = top + cell * layer + cell // 2 - 1
        shapes += [_Rect(left - 6, y, 4, 1, INK), _Text(left - 12, y + 6, str(layer), "end")]
    for layer, heads in enumerate(pruned):
        y = top + cell * layer
        for head in range(num_heads):
            colour = GREY if ranks is None else shade_of(ranks[layer][head])
            shapes.append(_Rect(left + cell * head, y, cell - 1, cell - 1, colour))
            shapes += _mark(left + cell * head, y, cell - 1) if head in heads else []
        shapes.append(_Rect(bars, y + cell // 8, unit * len(heads), cell - 1 - 2 * (cell // 8), RED))
    if ranks is None:
        shapes += [_Rect(left, legend, 20, 20, GREY), _Text(left + 28, legend + 15, "kept", "start")]
    else:
        shapes += [_Rect(left + x, legend, 2, 20, shade_of(x / scale)) for x in range(0, scale, 2)]
        shapes += [_Text(left + 8, legend + 15, "low", "start", 14, WHITE)]
        shapes += [_Text(left + scale - 8, legend + 15, "high", "end", 14)]
        shapes += [_Text(left + scale // 2, legend + 40, "saliency (rank in the model)")]
    shapes += [*_mark(key, legend, 20), _Text(key + 28, legend + 15, "pruned", "start")]
    return max(bars_end, key + 80, left + 10 * len(title)) + 24, legend + 60, shapes


def shade_of(rank: float) -> tuple[int, ...]:
    """The colour of a *rank* in [0, 1), red, green and blue."""
    place, part = divmod(rank * (len(VIRIDIS) - 1), 1)
    low, high = VIRIDIS[int(place) : int(place) + 2]  # no rank is 1
    return tuple(round(a + (b - a) * part) for a, b in zip(low, high, strict=True))


def _mark(x: int, y: int, side: int) -> _Shapes:
    line, inset, rim = max(1.8, side / 9), side / 4, max(0.8, side / 18)  # a white rim sets red off from dark shades
    return [_Cross(x, y, side, inset - rim, line + 2 * rim, WHITE), _Cross(x, y, side, inset, line, RED)]


def _raster(width: int, height: int, shapes: _Shapes) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    @cache
    def stencil(side: int, inset: float, line: float) -> Image.Image:
        large, ends = Image.new("L", (8 * side, 8 * side)), (8 * inset, 8 * (side - inset))
        for start, end in (ends, ends[::-1]):
            ImageDraw.Draw(large).line((ends[0], start, ends[1], end), 255, round(8 * line))
        return large.reduce(8)  # its edges are smooth, which those of Pillow's lines are not

    font = cache(ImageFont.load_default)
    image = Image.new("RGB", (width, height), WHITE)
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        match shape:
            case _Rect(x, y, across, down, colour):
                image.paste(colour, (x, y, x + across, y + down))
            case _Cross(x, y, side, inset, line, colour):
                image.paste(colour, (x, y), stencil(side, inset, line))
            case _Text(x, y, text, anchor, size, colour):
                draw.text((x, y), text, colour, font(size), {"start": "ls", "middle": "ms", "end": "rs"}[anchor])
    return image


def _svg(width: int, height: int, shapes: _Shapes) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Arial, sans-serif">']
    for shape in [_Rect(0, 0, width, height, WHITE), *shapes]:
        match shape:
            case _Rect(x, y, across, down, colour):
                lines.append(f'<rect x="{x}" y="{y}" width="{across}" height="{down}" fill="rgb{colour}"/>')
            case _Cross(x, y, side, inset, line, colour):
                arm = round(side - 2 * inset, 2)
                path = f"M{x + inset:.2f} {y + inset:.2f}l{arm} {arm}m0 {-arm}l{-arm} {arm}"
                lines.append(f'<path d="{path}" stroke="rgb{colour}" stroke-width="{line:.2f}"/>')
            case _Text(x, y, text, anchor, points, colour):
                style = f'text-anchor="{anchor}" font-size="{points}" fill="rgb{colour}"'
                lines.append(f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>')
    return "\n".join([*lines, "</svg>", ""])
