"""The main job: from a checkpoint and a mask to a new checkpoint."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..calibration.statistics import CalibrationData
from ..calibration.statistics import scratch_bytes as statistics_bytes
from ..checkpoint import Checkpoint
from ..checkpoint.loader_names import check_loader_name
from ..checkpoint.refusals import refuse_delta_name
from ..checkpoint.sidecars import perhaps_private
from ..choices import COMPENSATIONS, HOLDOUT
from ..compensation import MomentsSource, fit
from ..compensation.fitting import check_mode, known_before_fitting, scratch_bytes
from ..disk import free_bytes
from ..errors import CalibrationError, CheckpointError, S4ConvertError, UsageError, VerificationError, shown, text_of
from ..mask import HeadMask
from ..model.decoder import check_device, require_stock_code
from ..output.card import CARD_FILES, BaseCard, draw_picture, public_command, read_base_card, write_card
from ..output.manifest import manifest, write_manifest
from ..output.origin import Origin, describe_moments
from ..progress import byte_bar
from ..rewrite.assembly import OutputFile, assemble
from ..rewrite.plan import Plan, make_plan
from ..rewrite.staging import (
    SPARE_BYTES,
    Staging,
    check_destination,
    check_replaceable,
    check_space,
    commit,
    open_staging,
)
from ..rewrite.writer import DiskFlusher, disk_flusher, stage
from ..sources import locate_tower, open_checkpoint
from ..study.evaluation import Tasks
from ..verify.checks import check_claim, default_jobs
from ..verify.claim import Claim, Terms
from ..verify.report import Report
from ..verify.structure import ByteChecks
from .evaluate import Asked, Evaluated, EvaluateOptions, answers_of, embedded, read_asked
from .notes import notes_on
from .options import ConversionOptions, as_path, options_of

_log = logging.getLogger(__name__)

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ConversionOptions):
    """How a checkpoint is converted; further options are those of :class:`~s4convert.jobs.options.ConversionOptions`.

    Compensation: *compensation* is a row of :data:`~s4convert.compensation.modes.MODES`. What is fitted to data takes
    *calibration*, a file of questions or plain text, with *images*, the directory of its images; the first
    *num_samples* (all) are used, and the share *holdout* (0.2) of them judges the fit. *device* runs the model, too.
    *save_statistics* keeps what was measured in a directory, which *statistics* takes instead of data.

    Evaluation: *evaluate* is a file of questions (docs/evaluate.md) that IN and OUT are asked on *device* before OUT
    appears, with *evaluate_images*, the directory of its images, and *conversation*, the prompt that the model was
    trained with, where its files do not say it.

    Output: *shard_size* (bytes, or ``"5GB"``) bounds the shards that are built from ``.bin`` files. *force* replaces
    the conversion that stands at OUT; *allow_converted* accepts an IN that was converted before; *allow_name* an OUT
    that stock LLaVA loads as another class. *card* writes a model card, README.md; without it, README.md is IN's.

    Raises:
        UsageError: an option is of the wrong type, out of range, or means nothing without another.
    """

    compensation: str = COMPENSATIONS[0]
    calibration: str | Path | None = None
    images: str | Path | None = None
    num_samples: int | None = None
    holdout: float | None = None
    save_statistics: str | Path | None = None
    evaluate: str | Path | None = None
    evaluate_images: str | Path | None = None
    conversation: str | None = None
    shard_size: int | str | None = None
    force: bool = False
    allow_converted: bool = False
    allow_name: bool = False
    card: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shard_bytes
        if self.evaluate is None:
            for name in ("evaluate_images", "conversation"):
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` is about questions to ask; give them with `evaluate`")
            if self.vision_tower is not None and self.calibration is None and not self.check_behaviour:
                raise UsageError(
                    "`vision_tower` is for calibration and hidden states, and here is neither; leave it out"
                )
        about_data = ("images", "num_samples", "holdout", "save_statistics")
        about_fits = ("image_weight", "device") if self.evaluate is None else ("image_weight",)
        if self.calibration is None:
            of_no_use = about_data if self.statistics is not None else (*about_data, *about_fits)
            for name in of_no_use:
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` is about calibration data; give it with `calibration`")
        elif self.statistics is not None:
            raise UsageError("give `calibration` data, or `statistics` kept before, one of the two")

    @property
    def shard_bytes(self) -> int | None:
        """:attr:`shard_size` in bytes; text is as the Hub writes sizes, in powers of ten."""
        num_bytes = None if isinstance(self.shard_size, str) else self.shard_size
        if isinstance(self.shard_size, str):
            match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMG]B)", self.shard_size.upper())
            num_bytes = int(float(match[1]) * _UNITS[match[2]]) if match else 0
        if num_bytes is not None and num_bytes < 1:
            raise UsageError(f"`shard_size` {shown(self.shard_size)} is not a size such as 500MB or 5GB")
        return num_bytes

    @cached_property
    def evaluation(self) -> EvaluateOptions | None:
        """How IN and OUT are asked, if they are."""
        if self.evaluate is None:
            return None
        return EvaluateOptions(
            questions=self.evaluate,
            images=self.evaluate_images,
            conversation=self.conversation,
            vision_tower=self.vision_tower,
            device=self.device or "cpu",
            progress=self.progress,
        )

    @cached_property
    def calibration_data(self) -> CalibrationData | None:
        """The data to calibrate on, if any."""
        if self.calibration is None:
            return None
        holdout = HOLDOUT if self.holdout is None else self.holdout
        images = None if self.images is None else Path(self.images)
        return CalibrationData(Path(self.calibration), images, self.num_samples, holdout, self.device or "cpu")


@dataclass(frozen=True)
class PlannedConversion:
    """A conversion that has been checked against the disk, and not been carried out.

    *tower* is the directory of a vision tower that was given or is on the Hub, where one is needed. *base_card* is the
    model card that OUT's is built on; None where IN's README.md is to stay as it is. *own_files* are those that OUT
    says itself: its card. *asked* are the questions of an evaluation, if there is one.
    """

    checkpoint: Checkpoint
    mask: HeadMask
    out: Path
    options: ConvertOptions
    files: tuple[OutputFile, ...]
    tower: Path | None
    base_card: BaseCard | None
    own_files: frozenset[str]
    asked: Asked | None = None

    @property
    def plan(self) -> Plan:
        """The edits, without the maps that are still to be fitted."""
        fits = known_before_fitting(self.options.compensation, self.checkpoint, self.mask)
        return make_plan(self.checkpoint, self.mask, fits, self.files)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know of the mask and the statistics."""
        return notes_on(self.checkpoint, self.mask, self.options.kept_statistics)

    @property
    def bytes_needed(self) -> int:
        """Bytes that OUT, and the scratch of its fits, will take at the most."""
        options, layers = self.options, len(self.mask.touched_layers)
        scratch = scratch_bytes(options.compensation, self.checkpoint, self.mask)
        if options.calibration is not None and options.save_statistics is None:
            scratch += statistics_bytes(self.checkpoint, layers)
        return sum(file.size for file in self.files) + scratch + SPARE_BYTES

    def to_json(self) -> dict[str, Any]:
        """The plan, and the space it takes, for a script to read."""
        return self.plan.to_json() | {"needed_bytes": self.bytes_needed, "free_bytes": free_bytes(self.out)}

    def to_text(self, *, edits: bool = True) -> str:
        """The heads by layer, the plan (its *edits* tensor by tensor), and the space it takes, for a person to read."""
        plan = self.plan
        lines = [""]
        if edits:
            lines += [f"{edit.tensor.name}  {edit.describe()}  [{edit.tensor.shard}]" for edit in plan.edits]
            lines.append("")
        lines += [
            f"compensation {plan.fits.mode}, in {len(plan.mask.touched_layers)} layers",
            f"{len(plan.edits)} edits in spans of {plan.num_bytes:,} bytes",
            f"{self.bytes_needed:,} bytes needed, {free_bytes(self.out):,} free",
            "nothing was written",
        ]
        return f"{self.mask.to_text()}\n{text_of(lines)}"


def plan_conversion(
    source: Path | str,
    out: Path | str,
    mask: Path | str | HeadMask,
    options: ConvertOptions | None = None,
    **settings: Any,
) -> PlannedConversion:
    """What :func:`convert` would do with the same arguments; what cannot be done is refused, and nothing is written.

    A *source* or a *mask* on the Hub is downloaded into its client's cache.

    Raises:
        S4ConvertError: the subclass says what kind.
    """
    planned = prepare(source, out, mask, options_of(ConvertOptions, options, settings))
    check_replaceable(planned.out, force=planned.options.force)
    return planned


def convert(
    source: Path | str,
    out: Path | str,
    mask: Path | str | HeadMask,
    options: ConvertOptions | None = None,
    *,
    command: Sequence[str] | None = None,
    **settings: Any,
) -> Report:
    """Silence *mask*'s heads in the checkpoint *source* and write the result to *out*.

    *source* is a directory, or ``org/name``, ``org/name@revision`` on the Hub; *mask* a mask, a file, or
    ``org/name:file`` on the Hub. *options* may be given one by one as keywords, too: *settings* are fields of
    :class:`ConvertOptions`. *command* are the arguments of the command line that the model card names; by default,
    this call.

    OUT is whole if this returns. If it raises, OUT is as it was, unless the message says otherwise.

    Raises:
        S4ConvertError: the subclass says what kind.
        VerificationError: what was written is not what the mask asks for.
    """
    planned = prepare(source, out, mask, options_of(ConvertOptions, options, settings))
    origin, mode = planned.checkpoint.source, planned.options.compensation
    made_by = f's4convert.convert("{origin}", "OUT", mask, compensation="{mode}")'
    if command is not None:
        made_by = public_command(command, {str(source): origin, str(out): "OUT"})
    return _carry_out(planned, made_by)


def prepare(
    source: Path | str, out: Path | str, mask: Path | str | HeadMask, options: ConvertOptions
) -> PlannedConversion:
    """Open IN, read the mask, and refuse what cannot be done, all but what depends on what stands at OUT."""
    checkpoint, out = open_checkpoint(source, progress=options.progress), as_path(out)
    mask = options.read_mask(mask, checkpoint.geometry)
    if options.shard_size is not None and not checkpoint.is_torch:
        raise UsageError(f"{checkpoint.path}: its shards are safetensors and stay as they are; leave `shard_size` out")
    has_moments = options.calibration is not None or options.statistics is not None
    check_mode(options.compensation, checkpoint, mask, has_moments=has_moments)
    base_card = read_base_card(checkpoint) if options.card else None
    own_files = CARD_FILES if options.card else frozenset()
    files = assemble(checkpoint, options.shard_bytes, own_files=own_files)
    planned = PlannedConversion(checkpoint, mask, out, options, files, None, base_card, own_files)
    check_destination(checkpoint, out, planned.bytes_needed)
    refuse_delta_name(out)
    if not options.allow_name:
        check_loader_name(checkpoint.family, checkpoint.known_as, out)
    if not options.allow_converted:
        refuse_converted(checkpoint)
    planned = replace(planned, tower=_check_data(planned), asked=_read_asked(checkpoint, options))
    for note in planned.notes:
        _log.warning("%s", note)
    for name in checkpoint.left_behind:
        _log.warning("%s: left behind, it may hold unpruned weights", checkpoint.path / name)
    for name, why in checkpoint.passed_by.items():
        _log.warning("%s: left behind, %s", checkpoint.path / name, why)
    private = perhaps_private(checkpoint.sidecars)
    if private:
        _log.warning("%s: %s will be in OUT as well; move away what is private", checkpoint.path, private)
    return planned


def _check_data(planned: PlannedConversion) -> Path | None:
    """The vision tower; refuses, before any work, what is seen to be wrong with it, calibration data or statistics."""
    options, layers = planned.options, planned.mask.touched_layers
    data, kept, has_images = options.calibration_data, options.kept_statistics, False
    if data is not None or kept is not None:
        check_device(options.device or "cpu")
    if data is not None:
        options.statistics_in(planned.out)  # refuses an image weight
        has_images = data.check().has_images
    if kept is not None:
        kept.check(planned.checkpoint, layers, foreign=options.foreign_statistics)
    if options.save_statistics is not None:
        save = Path(options.save_statistics)
        options.statistics_in(save).check_new()
        check_space(save, statistics_bytes(planned.checkpoint, planned.checkpoint.geometry.num_layers))
    if not has_images and not options.check_behaviour:
        return None
    return locate_tower(planned.checkpoint, options.vision_tower, needed=has_images, progress=options.progress)


def _read_asked(checkpoint: Checkpoint, options: ConvertOptions) -> Asked | None:
    """The questions of an evaluation, read; refuses, before any work, what is seen to be wrong with them."""
    if options.evaluation is None:
        return None
    try:
        return read_asked(checkpoint, options.evaluation)
    except (CalibrationError, UsageError) as error:  # which names the parameters of the job evaluate
        raise type(error)(str(error).replace("`images`", "`evaluate_images`")) from error


@dataclass(frozen=True)
class Staged:
    """A conversion that stands in the staging directory and was checked there.

    *calibration* describes the data behind its moments, see :func:`~s4convert.output.origin.describe_moments`.
    """

    plan: Plan
    report: Report
    calibration: Mapping[str, Any] | None


def _carry_out(planned: PlannedConversion, made_by: str) -> Report:
    """Fit, stage, verify and commit."""
    checkpoint, options, asked = planned.checkpoint, planned.options, planned.asked
    if options.check_behaviour or asked is not None:
        require_stock_code(checkpoint)
    tasks = None if asked is None else embedded(checkpoint, asked)
    picture = None if planned.base_card is None else draw_picture(planned.mask)
    with open_staging(planned.out) as staging, disk_flusher() as flusher:
        check_replaceable(planned.out, force=options.force)
        staged = stage_and_check(planned, staging, flusher)
        plan, report = staged.plan, staged.report
        if report.advice is not None:
            _log.warning("%s", report.advice)
        origin = Origin(made_by, staged.calibration, options.shard_bytes)
        evaluation = told = figures = None
        if asked is not None and tasks is not None:
            evaluation = _evaluate(checkpoint, _open_staged(staging.checkpoint), asked, tasks)
            kept = evaluation.to_keep()
            told = f"{asked}, by the prompt of {kept.conversation}:\n\n```\n{kept.to_text()}\n```"
            figures = {"questions": asked.to_json()} | kept.to_json()
        card = {}
        if planned.base_card is not None:
            card = write_card(checkpoint, plan, report, planned.base_card, picture, origin, told, staging.checkpoint)
        write_manifest(manifest(checkpoint, plan, report, origin, card, figures), staging.checkpoint)
        flusher.wait()
        commit(staging, replace=options.force)
    return replace(report, evaluation=evaluation)


def _evaluate(original: Checkpoint, converted: Checkpoint, asked: Asked, tasks: Tasks) -> Evaluated:
    """What both answer to the same embeddings, which a conversion leaves as they are."""
    sides = {"original": original, "converted": converted}
    answers = {name: answers_of(checkpoint, tasks, asked.options) for name, checkpoint in sides.items()}
    return Evaluated(answers, tasks.conversation, tasks.shown)


def stage_and_check(planned: PlannedConversion, staging: Staging, flusher: DiskFlusher) -> Staged:
    """Fit, write the files into *staging* and check them; *flusher* brings them to the disk meanwhile.

    Raises:
        VerificationError: what was written is not what the mask asks for.
        S4ConvertError: the subclass says what kind.
    """
    checkpoint, mask, options = planned.checkpoint, planned.mask, planned.options
    jobs = options.jobs or default_jobs()
    moments = _moments(planned, staging)
    fits = fit(options.compensation, checkpoint, mask, staging.scratch, moments=moments, progress=options.progress)
    plan = make_plan(checkpoint, mask, fits, planned.files)
    checks = ByteChecks(Terms(checkpoint, mask, fits, planned.own_files), staging.checkpoint)
    with byte_bar("write and check", plan.file_bytes, shown=options.progress) as bar:
        stage(checkpoint, plan, staging.checkpoint, flusher, checks, jobs=jobs, advance=bar.update)
    with _blaming_a_changed_input(checkpoint):
        claim = Claim(checkpoint, _open_staged(staging.checkpoint), mask, fits, planned.own_files)
        report = check_claim(
            claim,
            check_behaviour=options.check_behaviour,
            tower=planned.tower,
            moments=moments,
            notes=planned.notes,
            checks=checks,
            jobs=jobs,
            progress=options.progress,
        )
    return Staged(plan, report, describe_moments(moments))


def _moments(planned: PlannedConversion, staging: Staging) -> MomentsSource | None:
    """Where a fit gets the moments of a layer, gathered first where there is calibration data; None without any."""
    options, data = planned.options, planned.options.calibration_data
    if data is None:
        return options.given_moments
    geometry, layers = planned.checkpoint.geometry, planned.mask.touched_layers
    statistics = options.statistics_in(options.save_statistics or staging.scratch / "statistics")
    # What is kept is for other masks as well, and so of every layer.
    wanted = layers if options.save_statistics is None else range(geometry.num_layers)
    statistics.gather(planned.checkpoint, data, wanted, tower=planned.tower, progress=options.progress)
    return statistics


@contextmanager
def _blaming_a_changed_input(checkpoint: Checkpoint) -> Iterator[None]:
    """Where IN changed during the run, that is what is wrong, whatever else fails."""
    try:
        yield
    except S4ConvertError:
        checkpoint.check_unchanged()
        raise
    checkpoint.check_unchanged()


def _open_staged(directory: Path) -> Checkpoint:
    try:
        return Checkpoint.open(directory)
    except CheckpointError as error:  # IN was sound, so the fault is the writing's
        raise VerificationError(str(error)) from error


def refuse_converted(checkpoint: Checkpoint) -> None:
    """Raise UsageError where *checkpoint* has lost heads already."""
    hint = "convert the original instead, or insist with `allow_converted=True`"
    if checkpoint.manifest is not None:
        raise UsageError(
            f"{checkpoint.known_as}: was converted before, and its compensation would be folded in twice; {hint}"
        )
    for layer in range(checkpoint.geometry.num_layers):
        silent = checkpoint.silent_heads(layer)
        if silent:
            raise UsageError(f"{checkpoint.known_as}: layer {layer}: head {silent[0]} is zero already; {hint}")
