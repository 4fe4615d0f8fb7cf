"""The checks alone: are two checkpoints the two sides of one conversion?"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibration.inputs import Inputs
from ..calibration.statistics import CalibrationData
from ..checkpoint import Checkpoint
from ..compensation import MODES, Fits, fit
from ..compensation.modes import REFIT
from ..compensation.stated import stated_fits
from ..errors import CheckpointError, UsageError, VerificationError, shown
from ..mask import HeadMask
from ..model.decoder import check_device
from ..output.manifest import StatedConversion, check_digests, check_unproven, read_conversion
from ..output.origin import files_of, taken_of
from ..sources import locate_checkpoint, locate_tower, open_checkpoint
from ..verify.cause import naming_the_cause
from ..verify.checks import check_claim, default_jobs
from ..verify.claim import Claim
from ..verify.report import Report
from .distill import held_out_inputs
from .notes import notes_on
from .options import ConversionOptions, options_of


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ConversionOptions):
    """What a checkpoint is verified by; further options are those of
    :class:`~s4convert.jobs.options.ConversionOptions`.

    *mask* and *compensation* are those of the converted checkpoint's manifest unless given; without either, the
    compensation is ``scale``. *statistics* are those that it was fitted to, with the *image_weight* that it was
    fitted with.

    On *calibration*, a file of questions or plain text or several, with *images*, the directory of their images or one
    for each, the KL of what
    both say is measured, on *device*: on the samples that the manifest holds out, if it is the file of the fit, and
    else on all samples.

    Raises:
        UsageError: an option is of the wrong type, or means nothing without another.
    """

    mask: str | Path | HeadMask | None = None
    compensation: str | None = None
    calibration: str | Path | Sequence[str | Path] | None = None
    images: str | Path | Sequence[str | Path] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        about_the_mask = (self.mask_polarity, self.schedule, self.rate)
        if self.mask is None and any(option is not None for option in about_the_mask):
            raise UsageError("`mask_polarity`, `rate` and `schedule` are about a `mask` file; give that too")
        if self.statistics is None and self.image_weight is not None:
            raise UsageError("`image_weight` is about `statistics`; give that as well, or leave it out")
        if (
            self.statistics is None
            and self.calibration is None
            and self.device is not None
            and not self.check_behaviour
        ):
            raise UsageError("`device` is for fits and hidden states, and here is neither; leave it out")
        if self.calibration is None and self.images is not None:
            raise UsageError("`images` is about calibration data; give it with `calibration`")
        if self.calibration is not None and not self.check_behaviour:
            raise UsageError("`calibration` is for what is said, which is not checked; leave it out")
        if self.vision_tower is not None and not self.check_behaviour:
            raise UsageError("`vision_tower` is for hidden states, which are not checked; leave it out")


def verify_conversion(
    original: Path | str, converted: Path | str, options: VerifyOptions | None = None, **settings: Any
) -> Report:
    """Check that *converted* is what its mask asks of *original*; neither is written to.

    Both are directories, or ``org/name``, ``org/name@revision`` on the Hub. *settings* are fields of
    :class:`VerifyOptions`.

    A compensation that was fitted to calibration data is checked against the same statistics where they are given;
    without them, factors are those that the manifest states, and of a least-squares fit it is checked that the
    converted columns are a mix of the original's kept heads with its pruned ones, whichever.

    Raises:
        VerificationError: it is not.
        UsageError: there is no manifest and no mask is given.
        CheckpointError, MaskError, HubError, StorageError: as the class says.
    """
    options = options_of(VerifyOptions, options, settings)
    before = open_checkpoint(original, progress=options.progress)
    after = _open_converted(converted, before, options)
    stated = read_conversion(after)
    _check_sides(before, after, stated)
    mask = _mask(converted, before, stated, options)
    if options.device is not None:
        check_device(options.device)
    if options.kept_statistics is not None:
        options.kept_statistics.check(before, mask.touched_layers, foreign=options.foreign_statistics)
    data, tower = _held_out_data(options, stated), None
    if options.check_behaviour:
        needed = data is not None and data.check().has_images
        tower = locate_tower(before, options.vision_tower, needed=needed, progress=options.progress)
    own_files = frozenset[str]() if stated is None else stated.card
    with tempfile.TemporaryDirectory(prefix="s4convert-") as scratch, naming_the_cause(before, after, mask):
        fits = _fits(before, after, mask, stated, options, Path(scratch))
        held_out: list[Inputs] = []
        if data is not None:
            training = None if stated is None else stated.training
            held_out = held_out_inputs(before, data, training, tower=tower, progress=options.progress)
        report = check_claim(
            Claim(before, after, mask, fits, own_files),
            check_behaviour=options.check_behaviour,
            tower=tower,
            moments=options.given_moments,
            held_out=held_out,
            device=options.device or "cpu",
            notes=notes_on(before, mask, options.kept_statistics),
            jobs=options.jobs or default_jobs(),
            progress=options.progress,
        )
    if stated is not None:
        check_digests(stated, after, report)
        check_unproven(stated, after, report)
    return report


def _held_out_data(options: VerifyOptions, stated: StatedConversion | None) -> CalibrationData | None:
    """The data to compare on, split as the manifest says if it is the data of the fit; of other data, all is used."""
    if options.calibration is None:
        return None
    data = CalibrationData(options.calibration, options.images, holdout=0.0, device=options.device or "cpu")
    said = {} if stated is None else stated.calibration or {}
    files, holdout = files_of(said), said.get("holdout")
    if [file.sha256 for file in data.check().files] == [file["sha256"] for file in files] and isinstance(
        holdout, float
    ):
        return replace(data, holdout=holdout, **taken_of(files))
    return data


def _open_converted(converted: Path | str, before: Checkpoint, options: VerifyOptions) -> Checkpoint:
    directory, repository = locate_checkpoint(converted, progress=options.progress)
    try:
        after = Checkpoint.open(directory, repository)
    except CheckpointError as error:
        if not directory.is_dir():
            raise
        raise VerificationError(str(error)) from error  # ORIGINAL is sound, so a conversion of it would be
    if after.geometry != before.geometry:
        raise VerificationError(f"{converted}: its geometry is not the original's; is this the right ORIGINAL?")
    return after


def _check_sides(before: Checkpoint, after: Checkpoint, stated: StatedConversion | None) -> None:
    """Refuse what the manifests alone tell: that the two are swapped, or that *before* is another original."""
    if stated is None and before.manifest is not None:
        raise VerificationError(
            f"{before.known_as}: is a conversion, as its manifest says, and {after.known_as} has none; give the "
            "original first"
        )
    if stated is not None and stated.fingerprint not in ("", before.fingerprint):
        raise VerificationError(
            f"{after.known_as}: was made from {shown(stated.source)}, another checkpoint than {before.known_as}, as "
            "the fingerprint tells; give the one that it was made from"
        )


def _mask(
    converted: Path | str, before: Checkpoint, stated: StatedConversion | None, options: VerifyOptions
) -> HeadMask:
    if options.mask is not None:
        return options.read_mask(options.mask, before.geometry)
    if stated is None:
        raise UsageError(f"{converted}: has no manifest that names its mask; give it with `mask`")
    return stated.mask


def _fits(
    before: Checkpoint,
    after: Checkpoint,
    mask: HeadMask,
    stated: StatedConversion | None,
    options: VerifyOptions,
    scratch: Path,
) -> Fits:
    """The fits to check by: made anew where that can be, or else from what is stated of them."""
    mode, moments = options.compensation, options.given_moments
    if mode is None:
        mode = "scale" if stated is None else stated.compensation
    trains = "" if stated is None else stated.trains
    if mode not in MODES or not MODES[mode].needs_moments or (moments is not None and not trains):
        is_refit = mode in MODES and MODES[mode].trained
        fits = fit(REFIT if is_refit else mode, before, mask, scratch, moments=moments, progress=options.progress)
        return replace(fits, mode=mode)
    if stated is None or stated.compensation != mode:
        raise UsageError(
            f"{after.path}: has no manifest that states a {mode} fit; give the `statistics` that it was made of"
        )
    return stated_fits(mode, before, after, mask, stated.choices, stated.factors, scratch, trains)
