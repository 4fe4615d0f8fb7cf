"""Drawings of things with names: emoji of eight sets.

A thing is an emoji of :data:`CATEGORIES`, by its Unicode name. Of some things, the drawing of one set is held out:
it is never trained on, and the other sets' drawings of the same thing are.
"""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
HELD_OUT_SET = "twemoji"
HELD_OUT_SHARE = 0.25  # of the things
HELD_OUT_SEED = 7
FEWEST_SETS = 4  # a thing that fewer sets draw is left out

DRAWING_SIZE = 64
IMAGE_SIZE = 72  # of a picture: a drawing with a margin
# Clocks and moons differ by a hand or a shadow, and these pairs by nothing that a name tells.
_LEFT_OUT = re.compile(r"o.clock|-thirty|moon|globe|mailbox|envelope|arrow|speaker|hourglass|face|oncoming|light rail")


@dataclass(frozen=True)
class Drawings:
    """*pixels* [drawings, 64, 64, 4] uint8, colours times alpha; *things*, *sets* and *held_out* of each drawing.

    *names* and *categories* are those of the things.
    """

    pixels: np.ndarray
    things: np.ndarray
    held_out: np.ndarray
    names: tuple[str, ...]
    categories: tuple[str, ...]

    def save(self, file: Path) -> None:
        np.savez_compressed(
            file,
            pixels=self.pixels,
            things=self.things,
            held_out=self.held_out,
            names=np.array(self.names),
            categories=np.array(self.categories),
        )

    @staticmethod
    def load(file: Path) -> Drawings:
        with np.load(file) as content:
            arrays = {name: content[name] for name in content.files}
        names, categories = (tuple(str(name) for name in arrays[key]) for key in ("names", "categories"))
        return Drawings(arrays["pixels"], arrays["things"], arrays["held_out"], names, categories)

    def picture(self, drawing: int) -> Image.Image:
        """The drawing on white, IMAGE_SIZE pixels wide, with nothing else changed."""
        pixels = self.pixels[drawing].astype(np.int64)
        margin = (IMAGE_SIZE - DRAWING_SIZE) // 2
        picture = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 255, np.uint8)
        within = slice(margin, margin + DRAWING_SIZE)
        picture[within, within] = np.clip(pixels[..., :3] + 255 - pixels[..., 3:], 0, 255)
        return Image.fromarray(picture)


def draw(names: Path, sets: Mapping[str, Path]) -> Drawings:
    """The drawings in *sets* (name -> directory of an Iconify package) of the things in *names* (Unicode's data)."""
    things = _things(json.loads(names.read_text()))
    icons = {name: _Icons(directory) for name, directory in sets.items()}
    drawn = {slug: [name for name, found in icons.items() if slug in found] for slug in things}
    things = {slug: thing for slug, thing in things.items() if len(drawn[slug]) >= FEWEST_SETS}
    with_held_out = sorted(slug for slug in things if HELD_OUT_SET in drawn[slug])
    held_out = set(random.Random(HELD_OUT_SEED).sample(with_held_out, round(HELD_OUT_SHARE * len(things))))
    rows = [
        (icons[name].render(slug), number, name == HELD_OUT_SET and slug in held_out)
        for number, slug in enumerate(things)
        for name in drawn[slug]
    ]
    pixels, numbers, is_held_out = zip(*rows, strict=True)
    named = tuple(zip(*things.values(), strict=True))
    return Drawings(np.stack(pixels), np.array(numbers, np.int16), np.array(is_held_out), named[0], named[1])


def _things(data: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, str]]:
    """slug -> (name, category)."""
    return {
        entry["slug"].replace("_", "-"): (entry["name"], entry["group"])
        for entry in data.values()
        if entry["group"] in CATEGORIES and entry["name"].isascii() and not _LEFT_OUT.search(entry["name"])
    }


class _Icons:
    """The SVG drawings of one Iconify package."""

    def __init__(self, directory: Path) -> None:
        content = json.loads((directory / "icons.json").read_text())
        self._icons, self._aliases = content["icons"], content.get("aliases", {})
        self._size = content.get("width", 16), content.get("height", content.get("width", 16))

    def _name(self, slug: str) -> str | None:
        for name in (slug, slug.replace("-", "")):  # Firefox's names have no hyphens
            name = self._aliases[name]["parent"] if name in self._aliases else name
            if name in self._icons:
                return name
        return None

    def __contains__(self, slug: str) -> bool:
        return self._name(slug) is not None

    def render(self, slug: str) -> np.ndarray:
        """Pixels [64, 64, 4], colours times alpha."""
        import resvg_py

        icon = self._icons[self._name(slug)]
        width, height = icon.get("width", self._size[0]), icon.get("height", self._size[1])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}"'
            f' width="{DRAWING_SIZE}" height="{DRAWING_SIZE}">{icon["body"]}</svg>'
        )
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(np.uint16)
        alpha = pixels[..., 3:]
        return np.concatenate([pixels[..., :3] * alpha // 255, alpha], axis=-1).astype(np.uint8)
