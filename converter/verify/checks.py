"""All checks of a claim, one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..calibration.inputs import Inputs, some_of
from ..calibration.samples import Samples
from ..compensation import MODES, MomentsSource
from ..progress import byte_bar, layer_bar
from .claim import Claim
from .definition import check_definition
from .report import Report
from .structure import ByteChecks, check_structure


def check_claim(
    claim: Claim,
    *,
    check_behaviour: bool,
    tower: Path | None = None,
    probe: Samples | None = None,
    moments: MomentsSource | None = None,
    held_out: Sequence[Inputs] = (),
    device: str = "cpu",
    notes: tuple[str, ...] = (),
    checks: ByteChecks | None = None,
    jobs: int,
    progress: bool,
) -> Report:
    """Check the bytes that *claim* speaks of, its compensation, and the hidden states where *check_behaviour* is on.

    *tower* is the directory of the vision tower for the probe, and *probe* what it is made of, see
    :func:`~s4convert.verify.probe.make_probe`. With the *moments* that its fits were made of, fitted ones are checked
    as well, and the error of the weights as they are stored is measured. On some of the samples *held_out*, if there
    are any, what original and converted say is compared, where *check_behaviour* is on. The models run on *device*.
    *notes* go into the report. *checks* have seen the bytes while they were written.

    Raises:
        VerificationError: the first thing that is wrong.
        StorageError: a file cannot be read.
    """
    checks = ByteChecks(claim.terms, claim.converted.path, claim.converted) if checks is None else checks
    total = sum(claim.converted.stamps[name].size for name in checks.unseen(claim.converted))
    with byte_bar("check", total, shown=progress and total > 0) as bar:
        structure = check_structure(claim, checks, jobs=jobs, advance=bar.update)
    errors: dict[int, float] = {}
    touched = claim.mask.touched_layers
    with layer_bar("compensation", len(touched), shown=progress and moments is not None) as bar:
        for layer in touched:
            error = check_definition(claim, layer, None if moments is None else moments(layer).train)
            if error is not None:
                errors[layer] = error
            bar.update(1)
    figures = agreement = None
    if check_behaviour:
        # Imported here, because transformers takes seconds to import and a check of bytes does without.
        from . import behaviour
        from .probe import make_probe

        with layer_bar("probe", claim.original.geometry.num_layers, shown=progress) as bar:
            made = make_probe(claim.original, tower, device, given=probe)
            figures = behaviour.check_behaviour(claim, made, device=device, advance=bar.update)
        if held_out:
            from .agreement import check_agreement

            with layer_bar("agreement", claim.original.geometry.num_layers, shown=progress) as bar:
                agreement = check_agreement(claim, some_of(held_out), device=device, advance=bar.update)
    fits = claim.fits
    fitted = (layer for layer in touched if MODES[fits.choice(layer).mode].needs_moments)
    unproven = tuple(fitted) if moments is None and not (fits.trains and agreement) else ()
    return Report(
        claim.mask,
        fits.mode,
        structure,
        figures,
        fits.figures,
        errors,
        notes,
        unproven,
        training=fits.training,
        agreement=agreement,
    )


def default_jobs() -> int:
    """Threads that keep the disk and the processors busy."""
    return min(8, max(2, os.cpu_count() or 2))
