"""Reads mask and scores files: the ending of the name tells an array from JSON, the content tells the format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..checkpoint.geometry import Geometry
from ..choices import POLARITIES
from ..errors import MaskError, UsageError, enough_memory, shown
from .formats.arrays import ARRAY_READERS
from .formats.content import interpret_json, read_bytes
from .formats.json_masks import read_json
from .formats.layer_lists import SIZES, Hints, is_integer, read_flags
from .formats.scores import are_scores, read_scores
from .head_mask import HeadMask, MaskFile
from .head_scores import HeadScores
from .schedules import Schedule

_MOST = 10_000  # more layers, or heads in a layer, than any model has


def load_mask(
    path: Path | str, geometry: Geometry, *, polarity: str | None = None, schedule: Schedule | None = None
) -> HeadMask:
    """Read the mask file *path*, in any format of docs/masks.md, for a model of *geometry*.

    *polarity* says what a 1 means where the file does not: ``keep`` or ``prune`` the head. *schedule* turns a file
    of scores into a mask. The mask's ``file`` says how the file was read.

    Raises:
        MaskError: there is no such file, or it is malformed, ambiguous, without effect or not of this geometry.
        UsageError: there is no such *polarity*, or *schedule* does not fit the scores.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    if polarity is not None and polarity not in POLARITIES:
        raise UsageError(f"`mask_polarity` {shown(polarity)} is none of {', '.join(POLARITIES)}")
    content, hints = read_bytes(path), Hints(geometry, polarity, schedule)
    array = ARRAY_READERS.get(path.suffix.lower())
    with _naming(path):
        if array is None:
            mask, how_read = interpret_json(content, lambda parsed: read_json(parsed, hints))
        else:
            rows, what = array(content, (geometry.num_layers, geometry.num_heads))
            mask, how_read = read_flags(rows, hints, what)
        mask.check_fits(geometry)
    how_read = f"{how_read}, {mask.num_pruned} of {mask.num_layers * mask.num_heads} heads"
    return replace(mask, file=MaskFile(path.name, sha256(content).hexdigest(), how_read))


def load_scores(path: Path | str, geometry: Geometry | None = None) -> HeadScores:
    """Read the scores file *path*, in any format of docs/masks.md, for a model of *geometry* or of any.

    Raises:
        MaskError: there is no such file, it holds no scores, or they are malformed or of another geometry.
        StorageError: the file cannot be read.
    """

    def interpret(content: Any) -> HeadScores:
        if not are_scores(content):
            raise MaskError("holds no scores; docs/masks.md lists the formats of scores files")
        return read_scores(content, geometry)

    content = read_bytes(Path(path))
    with _naming(Path(path)):
        return interpret_json(content, interpret)


def holds_scores(path: Path | str) -> bool:
    """Whether the file *path* is one of scores, sound or not.

    Raises:
        MaskError: it cannot be told: it is no file, or no JSON.
        StorageError: it cannot be read.
    """
    path = Path(path)
    if path.suffix.lower() in ARRAY_READERS:
        return False
    try:
        return interpret_json(read_bytes(path), are_scores)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error


def stated_size(path: Path) -> Geometry:
    """The numbers of layers and heads that the mask file *path* states; the other sizes in the result mean nothing.

    Raises:
        MaskError: it does not state them, or is not JSON.
        StorageError: the file cannot be read.
    """
    unknown = MaskError(f"{path}: does not say how many layers and heads the model has; give its `checkpoint`")
    if path.suffix.lower() in ARRAY_READERS:
        raise unknown
    raw = read_bytes(path)
    with _naming(path):
        content = interpret_json(raw, lambda parsed: parsed)
    sizes: list[Any] = [content.get(name) for name in SIZES] if isinstance(content, dict) else []
    if isinstance(content, dict) and "total_heads" in content and isinstance(content.get("pruned_heads"), dict):
        rows = content["pruned_heads"].values()  # an S4 calibration file: the flags of every layer
        sizes = [len(rows), max((len(row) for row in rows if isinstance(row, list)), default=0)]
    if not sizes or not all(is_integer(size) and 0 < size <= _MOST for size in sizes):
        raise unknown
    num_layers, num_heads = map(int, sizes)
    return Geometry(num_layers, num_heads, num_heads, 1, num_heads)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put *path* in front of a MaskError, and of what is said where memory is short."""
    try:
        with enough_memory(str(path)):
            yield
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error
