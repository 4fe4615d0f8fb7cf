"""The checks alone: are two directories the two sides of one conversion?"""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import Checkpoint
from ..compensation import MODES, Compensation, FittedCompensation, MomentsSource
from ..compensation.stated import StatedCompensation
from ..errors import CheckpointError, UsageError, VerificationError
from ..mask import HeadMask, Schedule
from ..mask.formats.layer_lists import Polarity
from ..output.manifest import StatedConversion, check_digests, read_conversion
from ..sources import load_mask, locate_checkpoint, open_checkpoint
from ..verify.checks import check_converted, default_jobs
from ..verify.report import Report


def verify_conversion(
    original: Path | str,
    converted: Path | str,
    *,
    mask: Path | str | None = None,
    polarity: Polarity | None = None,
    schedule: Schedule | None = None,
    compensation: str | None = None,
    moments: MomentsSource | None = None,
    check_behaviour: bool = True,
    jobs: int | None = None,
    progress: bool = False,
) -> Report:
    """Check that *converted* is what its mask asks of *original*; neither is written to.

    Both are directories, or ``org/name``, ``org/name@revision`` on the Hub.

    Mask and compensation are those of *converted*'s manifest unless given; without either, the compensation
    is ``scale``. *polarity* and *schedule* are for masks that need them, see
    :func:`~s4convert.mask.files.load_mask`.

    A compensation that was fitted to calibration data is checked against the same *moments* where they are given;
    without them, factors are those that the manifest states, and of a least-squares fit it is checked that the
    converted columns are a mix of the original's kept heads with its pruned ones, whichever.

    Raises:
        VerificationError: it is not.
        UsageError: there is no manifest and no mask is given.
        CheckpointError, MaskError, HubError, StorageError: as the class says.
    """
    before = open_checkpoint(original, progress=progress)
    directory, repository = locate_checkpoint(converted, progress=progress)
    try:
        after = Checkpoint.open(directory, repository)
    except CheckpointError as error:
        if not directory.is_dir():
            raise
        raise VerificationError(str(error)) from error  # ORIGINAL is sound, so a conversion of it would be
    if after.geometry != before.geometry:
        raise VerificationError(f"{converted}: its geometry is not the original's; is this the right ORIGINAL?")
    stated = read_conversion(after)
    if mask is None and (polarity is not None or schedule is not None):
        raise UsageError("--mask-polarity, --rate and --schedule are about a --mask file; give that too")
    if mask is not None:
        head_mask = load_mask(mask, before.geometry, polarity=polarity, schedule=schedule, progress=progress)
    elif stated is not None:
        head_mask = stated.mask
    else:
        raise UsageError(f"{converted}: has no manifest that names its mask; give it with --mask")
    if compensation is None:
        compensation = "scale" if stated is None else stated.compensation
    report = check_converted(
        before,
        after,
        head_mask,
        _compensation(compensation, before, after, head_mask, moments, stated),
        check_behaviour=check_behaviour,
        card=frozenset() if stated is None else stated.card,
        jobs=jobs or default_jobs(),
        progress=progress,
    )
    if stated is not None:
        check_digests(stated, after, report)
    return report


def _compensation(
    mode: str,
    before: Checkpoint,
    after: Checkpoint,
    mask: HeadMask,
    moments: MomentsSource | None,
    stated: StatedConversion | None,
) -> Compensation:
    """The compensation to check by: from the moments, or else from what is stated of it."""
    if mode not in MODES or not MODES[mode].needs_moments or moments is not None:
        return FittedCompensation(mode, before, mask, moments)
    if stated is None or stated.compensation != mode:
        raise UsageError(
            f"{after.path}: has no manifest that states a {mode} fit; give the moments that it was made of"
        )
    return StatedCompensation(mode, before, after, mask, stated.factors)
