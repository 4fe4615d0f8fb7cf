"""The checks alone: are two checkpoints the two sides of one conversion?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibration.inputs import Inputs
from ..calibration.statistics import CalibrationData
from ..checkpoint import INDEX_FILE, MANIFEST_FILE, Checkpoint
from ..checkpoint.files import GIT_ATTRIBUTES_FILE
from ..compensation import MODES, Fits, fit
from ..compensation.modes import REFIT
from ..compensation.recognised import recognise
from ..compensation.stated import stated_fits
from ..disk import sha256_of
from ..errors import CheckpointError, UsageError, VerificationError, reading, shown, text_of
from ..mask import HeadMask
from ..model.decoder import check_device
from ..output.manifest import Digest, StatedConversion, check_digests, check_unproven, read_conversion
from ..output.origin import files_of, taken_of
from ..progress import byte_bar
from ..sources import locate_checkpoint, locate_tower, open_checkpoint
from ..verify.cause import check_masks_agree, naming_the_cause, silenced_heads
from ..verify.checks import check_claim, default_jobs
from ..verify.claim import Claim
from ..verify.report import Report, compensation_json
from .distill import held_out_inputs
from .notes import notes_on, notes_on_probe
from .options import ConversionOptions, options_of


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ConversionOptions):
    """What a checkpoint is verified by; further options are those of
    :class:`~s4convert.jobs.options.ConversionOptions`.

    *mask* and *compensation* are those of the converted checkpoint's manifest unless given; where it has no manifest,
    they are read off the weights of the two. *statistics* are those that it was fitted to, with the *image_weight*
    that it was fitted with.

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

    Without a manifest, the heads that fell silent are the mask, and what their layers have in place of them is
    recognised: :attr:`~s4convert.verify.report.Report.recognised` says what it is. Shards and other files may then be
    others than the original's; a note names those that differ.

    A compensation that was fitted to calibration data is checked against the same statistics where they are given;
    without them, factors are those that the manifest states, and of a least-squares fit it is checked that the
    converted columns are a mix of the original's kept heads with its pruned ones, whichever.

    Raises:
        VerificationError: it is not; the error says the cause, where that is known, and what was seen until then.
        UsageError: options contradict each other, or a compensation needs a manifest or statistics.
        CheckpointError, MaskError, HubError, StorageError: as the class says.
    """
    options = options_of(VerifyOptions, options, settings)
    known: dict[str, Any] = {}
    try:
        return _verify(original, converted, options, known)
    except VerificationError as error:
        error.known = known
        raise


@dataclass(frozen=True)
class Integrity:
    """That a conversion's files are what its manifest says of them, and the heads of its *mask* silent in them.

    *digests* maps every file to its (size, sha256); *compensation* is the mode that the manifest states. *notes* are
    sentences that a reader of the verdict must know.
    """

    mask: HeadMask
    compensation: str
    digests: Mapping[str, Digest]
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """The outcome in a line."""
        return (
            f"OK, all {len(self.digests)} files are what {MANIFEST_FILE} says of them, and the {self.mask.num_pruned} "
            "heads of its mask are silent; give the original as well to check what they became"
        )

    def outcome_json(self) -> dict[str, Any]:
        """What was seen, for a script to read."""
        return {
            "cause": None,
            "mask": self.mask.to_json(),
            "compensation": compensation_json(self.compensation, None),
            "files": {name: {"size": size, "sha256": sha256} for name, (size, sha256) in self.digests.items()},
            **({"notes": list(self.notes)} if self.notes else {}),
            "verdict": self.verdict,
        }

    def to_text(self) -> str:
        """What was seen, for a person to read."""
        lines = [f"{name}  {size:,} bytes, as stated" for name, (size, _) in self.digests.items()]
        heads = f"heads: {self.mask.num_pruned} {self.mask.realised}"
        notes = [f"note: {note}" for note in self.notes]
        return text_of([*lines, "", heads, f"compensation: {self.compensation}", *notes, f"verdict: {self.verdict}"])


def verify_files(converted: Path | str, *, progress: bool = False) -> Integrity:
    """Check every file of *converted*, a directory or a name on the Hub, against its own manifest.

    Without the original this shows that no file changed since the conversion, and no more.

    Raises:
        VerificationError: a file is another than the manifest says, or a head of its mask is not silent.
        UsageError: it has no manifest.
        CheckpointError, MaskError, HubError, StorageError: as the class says.
    """
    checkpoint = open_checkpoint(converted, progress=progress)
    stated = read_conversion(checkpoint)
    if stated is None:
        raise UsageError(f"{converted}: has no {MANIFEST_FILE} to check it by; give the original before it")
    try:
        digests: dict[str, Digest] = {}
        total = sum(stamp.size for stamp in checkpoint.stamps.values())
        with reading(checkpoint.path), byte_bar("check", total, shown=progress) as bar:
            for name in sorted(checkpoint.stamps):
                digests[name] = (checkpoint.stamps[name].size, sha256_of(checkpoint.path / name, bar.update))
        check_digests(stated, checkpoint, digests)
        for layer in stated.mask.touched_layers:
            speaking = set(stated.mask.pruned[layer]) - set(checkpoint.silent_heads(layer))
            if speaking:
                raise VerificationError(
                    f"{checkpoint.known_as}: layer {layer}: head {min(speaking)} is not silent, though the mask in "
                    f"{MANIFEST_FILE} prunes it; convert the original again",
                    cause="another-mask",
                )
    except VerificationError as error:
        error.known = {"mask": stated.mask.to_json(), "compensation": compensation_json(stated.compensation, None)}
        raise
    checkpoint.check_unchanged()
    return Integrity(stated.mask, stated.compensation, digests, _on_passed_by(checkpoint))


def _verify(original: Path | str, converted: Path | str, options: VerifyOptions, known: dict[str, Any]) -> Report:
    """The report; *known* is told mask and compensation as soon as they are found."""
    before = open_checkpoint(original, progress=options.progress)
    after = _open_converted(converted, before, options)
    stated = read_conversion(after)
    _check_sides(before, after, stated)
    mask = _mask(before, after, stated, options)
    known["mask"] = mask.to_json()
    if options.device is not None:
        check_device(options.device)
    if options.kept_statistics is not None:
        options.kept_statistics.check(before, mask.touched_layers, foreign=options.foreign_statistics)
    data, tower = _held_out_data(options, stated), None
    if options.check_behaviour:
        read = (None if data is None else data.check(), options.probe_samples)
        needed = any(samples is not None and samples.has_images for samples in read)
        tower = locate_tower(before, options.vision_tower, needed=needed, progress=options.progress)
    causes = naming_the_cause(before, after, mask, None if stated is None else stated.mask)
    with tempfile.TemporaryDirectory(prefix="s4convert-") as scratch, causes:
        recognised = None
        if stated is None and options.compensation is None:
            recognised = recognise(before, after, mask, Path(scratch), progress=options.progress)
            mask, fits = recognised.mask, recognised.fits
            known["mask"] = mask.to_json()
        else:
            fits = _fits(before, after, mask, stated, options, Path(scratch))
        known["compensation"] = compensation_json(fits.mode, recognised)
        others = () if stated is not None else _other_files(before, after)
        held_out: list[Inputs] = []
        if data is not None:
            training = None if stated is None else stated.training
            held_out = held_out_inputs(before, data, training, tower=tower, progress=options.progress)
        report = check_claim(
            Claim(
                before,
                after,
                mask,
                fits,
                own_files=frozenset(others) if stated is None else stated.card,
                other_shards=stated is None and _has_other_shards(before, after),
            ),
            check_behaviour=options.check_behaviour,
            tower=tower,
            probe=options.probe_samples,
            moments=options.given_moments,
            held_out=held_out,
            device=options.device or "cpu",
            notes=(
                *notes_on(before, mask, options.kept_statistics),
                *notes_on_probe(options.probe_samples, None if stated is None else stated.calibration),
                *(() if recognised is None else recognised.notes),
                *_on_other_files(others),
                *_on_passed_by(after),
            ),
            jobs=options.jobs or default_jobs(),
            progress=options.progress,
        )
    if stated is not None:
        if options.mask is not None:
            check_masks_agree(after, mask, stated.mask)
        check_digests(stated, after, report.structure.digests)
        check_unproven(stated, after, report)
    for checkpoint in (before, after):
        checkpoint.check_unchanged()
    return replace(report, recognised=recognised)


def _other_files(before: Checkpoint, after: Checkpoint) -> tuple[str, ...]:
    """The files beside the weights that only one of the two has, or that differ."""
    names = set(before.sidecars) ^ set(after.sidecars)
    with reading(after.path):
        for name in set(before.sidecars) & set(after.sidecars):
            if sha256_of(before.path / name) != sha256_of(after.path / name):
                names.add(name)
    return tuple(sorted(names))


def _on_other_files(names: tuple[str, ...]) -> tuple[str, ...]:
    """A note where there are *names*; the index of shards, which no one looks at by itself, is none."""
    shown_names = [name for name in names if name != INDEX_FILE]
    if not shown_names:
        return ()
    return (f"{len(shown_names)} files beside the weights are not the original's: {', '.join(shown_names)}",)


def _on_passed_by(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note where something in *checkpoint* was passed by; .gitattributes, which the Hub writes, is none."""
    names = sorted(checkpoint.passed_by.keys() - {GIT_ATTRIBUTES_FILE})
    return (f"{len(names)} entries beside the checkpoint were not looked into: {', '.join(names)}",) if names else ()


def _has_other_shards(before: Checkpoint, after: Checkpoint) -> bool:
    """Whether the weights of the two stand in other files, or elsewhere in them."""
    return before.shards.keys() != after.shards.keys() or any(
        (before.shards[name].entries, before.shards[name].file_size) != (weights.entries, weights.file_size)
        for name, weights in after.shards.items()
    )


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
        raise VerificationError(
            f"{converted}: its geometry is not the original's; is this the right ORIGINAL?", cause="another-original"
        )
    return after


def _check_sides(before: Checkpoint, after: Checkpoint, stated: StatedConversion | None) -> None:
    """Refuse what the manifests alone tell: that the two are swapped, or that *before* is another original."""
    if stated is None and before.manifest is not None:
        raise VerificationError(
            f"{before.known_as}: is a conversion, as its manifest says, and {after.known_as} has none; give the "
            "original first",
            cause="swapped",
        )
    if stated is not None and stated.fingerprint not in ("", before.fingerprint):
        raise VerificationError(
            f"{after.known_as}: was made from {shown(stated.source)}, another checkpoint than {before.known_as}, as "
            "the fingerprint tells; give the one that it was made from",
            cause="another-original",
        )


def _mask(before: Checkpoint, after: Checkpoint, stated: StatedConversion | None, options: VerifyOptions) -> HeadMask:
    if options.mask is not None:
        return options.read_mask(options.mask, before.geometry)
    return silenced_heads(before, after) if stated is None else stated.mask


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
        assert stated is not None, "otherwise it is recognised"
        mode = stated.compensation
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
