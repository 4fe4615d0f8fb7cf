"""What a reader of a result must know of the mask and the statistics that it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..calibration.samples import Samples
from ..calibration.statistics import Statistics, read_description
from ..checkpoint import Checkpoint
from ..errors import shown
from ..mask import HeadMask
from ..output.origin import files_of

TOLERATED = 0.1  # of the rate that was asked for, before its rounding to whole heads is told


def notes_on(checkpoint: Checkpoint, mask: HeadMask, statistics: Statistics | None) -> tuple[str, ...]:
    """Sentences on *mask* and *statistics* where they are of another model than *checkpoint*, or not what was asked.

    Raises:
        CalibrationError: the statistics have no description.
        StorageError: the weights cannot be read.
    """
    said, notes = mask.provenance or {}, []
    made_on = said.get("fingerprint")
    if made_on is not None and made_on != checkpoint.fingerprint:
        notes.append(f"the mask was made on another model, {shown(said.get('source'))}, as the fingerprint tells")
    if statistics is not None:
        description = read_description(statistics.directory)
        if description.get("fingerprint") != checkpoint.fingerprint:
            source = shown(description.get("source"))
            notes.append(f"the statistics are of another model, {source}, as the fingerprint tells")
    heads = mask.num_layers * mask.num_heads
    asked, realised = said.get("rate"), mask.num_pruned / heads
    if isinstance(asked, float) and abs(realised - asked) > TOLERATED * asked:
        notes.append(
            f"a rate of {asked:g} was asked for; whole heads make {realised:.3g}, {mask.num_pruned} of {heads}"
        )
    if 2 * mask.num_pruned > heads:
        notes.append(
            f"the mask prunes more than half of the heads, {mask.num_pruned} of {heads}; is its polarity right?"
        )
    return tuple(notes)


def notes_on_probe(probe: Samples | None, calibration: Mapping[str, Any] | None) -> tuple[str, ...]:
    """A sentence where *probe* is of a file that a fit was made of, whose *calibration* data is described.

    Raises:
        UsageError: the description is malformed.
    """
    fitted_to = {file["sha256"] for file in files_of(calibration or {})}
    both = [] if probe is None else [file.name for file in probe.files if file.sha256 in fitted_to]
    return tuple(f"the probe, {name}, is the data of the fit, which looks better there than elsewhere" for name in both)
