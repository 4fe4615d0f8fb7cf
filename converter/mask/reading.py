"""From a mask file to a HeadMask: the name's ending says what kind of file it is, its content which format."""

from __future__ import annotations

from pathlib import Path

from converter.checkpoint.geometry import Geometry
from converter.errors import MaskError, UsageError, shown
from converter.mask.array_formats import ARRAY_READERS
from converter.mask.flags import read_flag_rows
from converter.mask.head_mask import HeadMask
from converter.mask.hints import Hints
from converter.mask.json_formats import read_json
from converter.mask.layer_lists import POLARITIES, Polarity
from converter.mask.mask_file import interpret_json, read_bytes
from converter.mask.schedules import Schedule


def load_mask(path: Path, geometry: Geometry, polarity: Polarity | None, schedule: Schedule | None) -> HeadMask:
    """:meth:`HeadMask.load`. Endings other than those of arrays are read as JSON."""
    if polarity is not None and polarity not in POLARITIES:
        raise UsageError(f"mask polarity {shown(polarity)} is none of {', '.join(POLARITIES)}")
    hints = Hints(geometry, polarity, schedule)
    content = read_bytes(path)
    try:
        mask, how_read = _read(path, content, hints)
        mask.check(geometry)
    except MaskError as error:
        raise MaskError(f"{path}: {error}") from error
    how_read = f"{how_read}, {mask.num_pruned} of {mask.num_layers * mask.num_heads} heads"
    return HeadMask(mask.num_heads, mask.pruned, mask.scale, mask.provenance, how_read)


def _read(path: Path, content: bytes, hints: Hints) -> tuple[HeadMask, str]:
    array = ARRAY_READERS.get(path.suffix.lower())
    if array is None:
        return interpret_json(content, lambda parsed: read_json(parsed, hints))
    rows, what = array(content, (hints.geometry.num_layers, hints.geometry.num_heads))
    return read_flag_rows(rows, hints, what)
