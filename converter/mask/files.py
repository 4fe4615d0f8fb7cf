"""The one door to mask and scores files: a file's ending says what kind it is, its content which format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.geometry import Geometry
from ..choices import POLARITIES
from ..errors import MaskError, UsageError, shown
from .formats.arrays import ARRAY_READERS
from .formats.content import interpret_json, read_bytes
from .formats.flags import Hints, read_flag_rows
from .formats.json_masks import read_json
from .formats.layer_lists import is_integer
from .formats.scores import are_scores, read_scores
from .head_mask import HeadMask
from .head_scores import HeadScores
from .schedules import Schedule

_MOST = 10_000  # layers, or heads of a layer, of any model


def load_mask(
    path: Path | str, geometry: Geometry, *, polarity: str | None = None, schedule: Schedule | None = None
) -> HeadMask:
    """Read the mask file *path*, in any format that docs/masks.md lists, for a model of *geometry*.

    *polarity* says what a 1 means where the file does not: ``keep`` or ``prune`` the head. *schedule* turns a file
    of scores into a mask. Endings other than those of arrays are read as JSON. How the file was read is in the mask's
    ``how_read``.

    Raises:
        MaskError: there is no such file, or it is malformed, ambiguous, without effect or not of this geometry.
        UsageError: *polarity* or *schedule* cannot be followed.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    if polarity is not None and polarity not in POLARITIES:
        raise UsageError(f"`mask_polarity` {shown(polarity)} is none of {', '.join(POLARITIES)}")
    content = read_bytes(path)
    try:
        mask, how_read = _read_mask(path, content, Hints(geometry, polarity, schedule))
        mask.check_fits(geometry)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error
    return replace(mask, how_read=f"{how_read}, {mask.num_pruned} of {mask.num_layers * mask.num_heads} heads")


def load_scores(path: Path | str, geometry: Geometry | None = None) -> HeadScores:
    """Read the scores file *path*, in any spelling that docs/masks.md lists, for a model of *geometry* if given.

    Raises:
        MaskError: there is no such file, it holds no scores, or they are malformed or of another geometry.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    content = read_bytes(path)
    try:
        return interpret_json(content, lambda parsed: _scores(parsed, geometry))
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error


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
    """The layers and heads that the mask file *path* is for, where it says so; its other sizes are not known.

    Raises:
        MaskError: it does not, or is not JSON.
        StorageError: it cannot be read.
    """
    unknown = MaskError(f"{path}: does not say how many layers and heads the model has; give its `checkpoint`")
    if path.suffix.lower() in ARRAY_READERS:
        raise unknown
    try:
        content = interpret_json(read_bytes(path), lambda parsed: parsed)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error
    sizes: list[Any] = [content.get(name) for name in ("num_layers", "num_heads")] if isinstance(content, dict) else []
    if isinstance(content, dict) and "total_heads" in content and isinstance(content.get("pruned_heads"), dict):
        rows = content["pruned_heads"].values()  # of an S4 calibration file: the flags of every layer
        sizes = [len(rows), max((len(row) for row in rows if isinstance(row, list)), default=0)]
    if not sizes or not all(is_integer(size) and 0 < size <= _MOST for size in sizes):
        raise unknown
    num_layers, num_heads = map(int, sizes)
    return Geometry(num_layers, num_heads, num_heads, 1, num_heads)


def _read_mask(path: Path, content: bytes, hints: Hints) -> tuple[HeadMask, str]:
    array = ARRAY_READERS.get(path.suffix.lower())
    if array is None:
        return interpret_json(content, lambda parsed: read_json(parsed, hints))
    rows, what = array(content, (hints.geometry.num_layers, hints.geometry.num_heads))
    return read_flag_rows(rows, hints, what)


def _scores(content: Any, geometry: Geometry | None) -> HeadScores:
    if not are_scores(content):
        raise MaskError("holds no scores; docs/masks.md lists the formats of scores files")
    return read_scores(content, geometry)
