"""Looking at masks: in a terminal, and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from s4convert import convert
from s4convert.errors import StorageError
from s4convert.mask import HeadMask
from s4convert.output.heatmap import plot_heatmap, text_heatmap
from tests.conftest import MINI_LLAVA
from tests.support.command_line import run_here


def test_a_text_heatmap_has_a_character_for_every_head() -> None:
    text = text_heatmap(4, ((), (1, 3)), [[0.1, 0.5, 0.2, 0.9], [0.3, 0.0, 0.4, 0.05]])
    _, first, second, meaning = text.splitlines()
    assert first == "    0 |:*-#|   0"
    assert second == "    1 |=x+x|   2 =="
    assert meaning.startswith("x = pruned")


def test_without_saliency_kept_heads_are_dots() -> None:
    assert "    0 |.x..|   1 =" in text_heatmap(4, ((1,),))


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    rows = {str(layer): [float((7 * layer + 3 * head) % 11) for head in range(4)] for layer in range(3)}
    content = {"format": "s4convert-scores/1", "num_layers": 3, "num_heads": 4, "scores": rows, "provenance": {}}
    path.write_text(json.dumps(content))
    return path


CELL, LEFT, TOP = 36, 64, 76  # of pictures of so few heads
RED = (214, 39, 40)
SALIENCY = [[0.3, 0.9, 0.1, 0.5], [0.2, 0.8, 0.7, 0.4], [0.6, 1.1, 0.0, 1.0]]
PICTURED: tuple[tuple[int, ...], ...] = ((), (0,), (0, 2, 3))


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def shapes(path: Path, name: str) -> list[ElementTree.Element]:
    return ElementTree.parse(path).getroot().findall(f"{{http://www.w3.org/2000/svg}}{name}")


def texts(path: Path) -> list[str]:
    return [shape.text or "" for shape in shapes(path, "text")]


def brightness(color: Any) -> float:
    return float(0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2])


def test_the_more_salient_a_head_the_brighter_its_cell(tmp_path: Path) -> None:
    plot_heatmap(tmp_path / "a.png", 4, PICTURED, SALIENCY, "title")
    image = picture(tmp_path / "a.png")
    cells = {
        SALIENCY[layer][head]: image.getpixel((LEFT + CELL * head + 2, TOP + CELL * layer + 2))
        for layer in range(3)
        for head in range(4)
    }
    by_saliency = [brightness(cells[saliency]) for saliency in sorted(cells)]
    assert by_saliency == sorted(set(by_saliency))
    assert cells[0.0] == (68, 1, 84)


@pytest.mark.parametrize("saliency", [SALIENCY, None])
def test_pruned_heads_alone_are_crossed_out(tmp_path: Path, saliency: list[list[float]] | None) -> None:
    plot_heatmap(tmp_path / "a.png", 4, PICTURED, saliency, "title")
    image = picture(tmp_path / "a.png")
    for layer in range(3):
        for head in range(4):
            x, y = LEFT + CELL * head, TOP + CELL * layer
            cell = image.crop((x, y, x + CELL - 1, y + CELL - 1))
            if head in PICTURED[layer]:
                assert image.getpixel((x + CELL // 2 - 1, y + CELL // 2 - 1)) == RED
            else:
                colours = cell.getcolors()
                assert colours is not None and len(colours) == 1
                if saliency is None:
                    assert cell.getpixel((0, 0)) == (221, 221, 221)


@pytest.mark.parametrize("num_heads", [4, 7, 20])
def test_a_bar_is_as_long_as_heads_are_pruned(tmp_path: Path, num_heads: int) -> None:
    pruned = [tuple(range(count)) for count in range(num_heads + 1)]
    plot_heatmap(tmp_path / "a.png", num_heads, pruned, None, "title")
    image = picture(tmp_path / "a.png")
    cell = min(CELL, 720 // (num_heads + 1))
    right = LEFT + cell * num_heads
    rows = [TOP + cell * layer + cell // 2 for layer in range(num_heads + 1)]
    lengths = [[image.getpixel((x, y)) for x in range(right, image.width)].count(RED) for y in rows]
    assert lengths[1] > 3
    assert lengths == [lengths[1] * count for count in range(num_heads + 1)]


def test_svg_and_png_show_the_same(tmp_path: Path) -> None:
    for name in ("a.svg", "a.png"):
        plot_heatmap(tmp_path / name, 4, PICTURED, SALIENCY, "4 of 12")
    image = picture(tmp_path / "a.png")
    seen = [shape for shape in shapes(tmp_path / "a.svg", "rect") if shape.get("width") == str(CELL - 1)]
    assert len(seen) == 12
    for shape in seen:
        color = image.getpixel((int(shape.attrib["x"]), int(shape.attrib["y"])))
        assert shape.get("fill") == f"rgb{color}"
    crosses = [shape for shape in shapes(tmp_path / "a.svg", "path") if shape.get("stroke") == f"rgb{RED}"]
    assert len(crosses) == 4 + 1  # and the legend's
    assert {"4 of 12", "head", "layer", "pruned", "saliency (rank in the model)"} <= set(texts(tmp_path / "a.svg"))


def test_many_heads_have_labels_now_and_then(tmp_path: Path) -> None:
    plot_heatmap(tmp_path / "a.svg", 64, [()] * 80, None, "title")
    labels = [int(text) for text in texts(tmp_path / "a.svg") if text.isdigit()]
    assert labels == [*range(0, 64, 5), 0, 32, 64, *range(0, 80, 5)]


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("a <b> & 'c': silent heads", "a <b> & 'c': silent heads"),
        ("two\nlines, \x01 and \udce9", "two?lines, ? and ?"),
        ("/long" * 20 + ": silent heads", "..." + ("/long" * 20 + ": silent heads")[-57:]),
    ],
)
def test_any_title_can_be_drawn(tmp_path: Path, title: str, shown: str) -> None:
    for name in ("a.svg", "a.png"):
        plot_heatmap(tmp_path / name, 4, PICTURED, None, title)
    assert shown in texts(tmp_path / "a.svg")
    assert picture(tmp_path / "a.png").width >= 10 * len(shown)


@pytest.mark.parametrize(
    ("ending", "start"),
    [
        ("png", b"\x89PNG"),
        ("PNG", b"\x89PNG"),
        ("jpg", b"\xff\xd8"),
        ("jpeg", b"\xff\xd8"),
        ("webp", b"RIFF"),
        ("pdf", b"%PDF"),
        ("svg", b"<svg "),
    ],
)
def test_the_same_heads_give_the_same_bytes(tmp_path: Path, ending: str, start: bytes) -> None:
    paths = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
    for path in paths:
        plot_heatmap(path, 4, PICTURED, SALIENCY, "title")
    one, two = (path.read_bytes() for path in paths)
    assert one == two
    assert one.startswith(start)
    assert b"Date" not in one


def test_a_png_holds_nothing_but_the_picture(tmp_path: Path) -> None:
    plot_heatmap(tmp_path / "a.png", 4, PICTURED, SALIENCY, "title")
    with Image.open(tmp_path / "a.png") as image:
        assert image.info == {}


@pytest.mark.parametrize("name", ["a.png", "a.svg"])
def test_a_picture_that_cannot_be_written_is_an_error_of_the_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match=rf"{name}: cannot be written: No such file or directory$"):
        plot_heatmap(tmp_path / "missing" / name, 4, PICTURED, None, "title")


def test_a_mask_can_be_drawn(scores: Path, tmp_path: Path) -> None:
    outcome = run_here(
        *("mask", "--scores", scores, "-o", tmp_path / "mask.json", "--plot", tmp_path / "mask.svg"),
        *("--schedule", "uniform", "--rate", "0.5"),
    )
    assert outcome.exit_code == 0
    assert "|" in outcome.stdout
    assert "6 of 12 heads pruned" in texts(tmp_path / "mask.svg")


def test_the_silent_heads_of_a_conversion_can_be_drawn(tmp_path: Path, mini_mask: HeadMask) -> None:
    convert(MINI_LLAVA, tmp_path / "out", mini_mask, check_behaviour=False)
    outcome = run_here("inspect", tmp_path / "out", "--plot", tmp_path / "heads.png")
    assert outcome.exit_code == 0
    assert "    4 |x......x|   2 ==" in outcome.stdout
    with Image.open(tmp_path / "heads.png") as picture:
        assert picture.format == "PNG"


def test_a_name_of_no_picture_is_refused_before_the_work(scores: Path, tmp_path: Path) -> None:
    outcome = run_here(
        *("mask", "--scores", scores, "-o", tmp_path / "mask.json", "--plot", tmp_path / "mask.doc"),
        *("--schedule", "uniform", "--rate", "0.5"),
    )
    assert outcome.exit_code == 2
    assert "mask.doc: is no name of a picture; end it with one of .png, .jpg," in outcome.error
    assert not (tmp_path / "mask.json").exists()
