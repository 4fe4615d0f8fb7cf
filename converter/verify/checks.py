"""Both checks of a claim, one after the other."""

from __future__ import annotations

import os
from pathlib import Path

from ..compensation import MomentsSource
from ..compensation.error import weight_error
from ..progress import byte_bar, layer_bar
from .claim import Claim
from .report import Report
from .structure import check_structure


def check_claim(
    claim: Claim,
    *,
    check_behaviour: bool,
    tower: Path | None = None,
    moments: MomentsSource | None = None,
    notes: tuple[str, ...] = (),
    jobs: int,
    progress: bool,
) -> Report:
    """Check the bytes that *claim* speaks of, and the hidden states where *check_behaviour* is on.

    *tower* is the directory of the vision tower for the probe, see :func:`~s4convert.verify.probe.make_probe`. With the
    *moments* that its fits were made of, the error of the weights as they are stored is measured as well.
    *notes* go into the report.

    Raises:
        VerificationError: the first thing that is wrong.
        StorageError: a file cannot be read.
    """
    total = sum(stamp.size for stamp in claim.converted.stamps.values())
    with byte_bar("check", total, shown=progress) as bar:
        structure = check_structure(claim, jobs=jobs, advance=bar.update)
    figures = None
    if check_behaviour:
        # Imported here, because transformers takes seconds to import and a check of bytes does without.
        from . import behaviour
        from .probe import make_probe

        with layer_bar("probe", claim.original.geometry.num_layers, shown=progress) as bar:
            figures = behaviour.check_behaviour(claim, make_probe(claim.original, tower), advance=bar.update)
    fits = claim.fits
    errors = {} if moments is None else {layer: _stored_error(claim, layer, moments) for layer in fits.figures}
    return Report(claim.mask, fits.mode, structure, figures, fits.figures, errors, notes)


def _stored_error(claim: Claim, layer: int, moments: MomentsSource) -> float:
    """E of *layer*'s ``o_proj`` as it is stored, rounded."""
    before, after = (checkpoint.read_projection(layer, "o") for checkpoint in (claim.original, claim.converted))
    return weight_error(before, after, moments(layer).train)


def default_jobs() -> int:
    """Threads that keep the disk and the processors busy."""
    return min(8, max(2, os.cpu_count() or 2))
