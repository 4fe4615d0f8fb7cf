"""The main job: from a checkpoint and a mask to a new checkpoint."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..calibration.inputs import Inputs
from ..calibration.statistics import CalibrationData, PassingMoments, held_out_of
from ..calibration.statistics import scratch_bytes as statistics_bytes
from ..checkpoint import MANIFEST_FILE, Checkpoint
from ..checkpoint.loader_names import check_loader_name
from ..checkpoint.refusals import refuse_delta_name
from ..checkpoint.sidecars import perhaps_private
from ..choices import HOLDOUT
from ..compensation import MODES, Fits, fit
from ..compensation.fitting import check_mode, known_before_fitting, scratch_bytes
from ..compensation.modes import REFIT, default_mode
from ..compensation.training import trained_bytes
from ..disk import free_bytes, sha256_of, write_output
from ..errors import (
    CheckpointError,
    S4ConvertError,
    StorageError,
    UsageError,
    VerificationError,
    printable,
    reading,
    shown,
    text_of,
)
from ..hub.names import check_repo_id
from ..mask import HeadMask
from ..model.decoder import check_device, require_stock_code
from ..model.front_end import check_takes_images
from ..model.resident import ResidentModel
from ..output.card import CARD_FILES, BaseCard, draw_picture, public_command, read_base_card, write_card
from ..output.html_report import html_report
from ..output.manifest import Digest, manifest, write_manifest
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
from ..verify.checks import check_claim, default_jobs
from ..verify.claim import Claim, Terms
from ..verify.report import Report
from ..verify.structure import ByteChecks
from .distill import check_training, distilled, training_inputs
from .notes import notes_on, notes_on_probe
from .options import ConversionOptions, TrainingOptions, as_path, images_called, options_of
from .recipe import RECIPES, check_recipe, mask_by_recipe
from .report import check_report

if TYPE_CHECKING:  # and else imported where questions are asked, so that other conversions start sooner
    from ..study.evaluation import Tasks
    from .evaluate import Asked, Evaluated, EvaluateOptions

_log = logging.getLogger(__name__)

_SHOWN_ANSWERS = 20  # in the manifest, side by side
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions(ConversionOptions, TrainingOptions):
    """How a checkpoint is converted; further options are those of
    :class:`~s4convert.jobs.options.ConversionOptions` and :class:`~s4convert.jobs.options.TrainingOptions`.

    Mask: where none is given, one is made on the calibration data by *recipe*, a row of
    :data:`~s4convert.jobs.recipe.RECIPES` (``fast``), at *rate* and *schedule* (``global``); *save_mask* keeps it.

    Compensation: *compensation* is a row of :data:`~s4convert.compensation.modes.MODES`; by default the recipe's, else
    ``least-squares`` with calibration data or statistics, and ``scale`` without. What is fitted to data takes
    *calibration*, a file of questions or plain text or several, with *images*, the directory of their images or one for
    each; the first *num_samples* (all) of each are used, and the share *holdout* (0.2) of all judges the fit. Plain
    text is packed into windows of *window* (640) tokens. *device* runs the model, too. *save_statistics* keeps what was
    measured in a directory, which *statistics* takes instead of data.

    Evaluation: *evaluate* is a file of questions (docs/evaluate.md) that IN and OUT are asked on *device* before OUT
    appears, with *evaluate_images*, the directory of its images, and *conversation*, the prompt that the model was
    trained with, where its files do not say it.

    Output: *shard_size* (bytes, or ``"5GB"``) bounds the shards that are built from ``.bin`` files. *force* replaces
    the conversion that stands at OUT; *allow_converted* accepts an IN that was converted before; *allow_name* an OUT
    that stock LLaVA loads as another class. *card* writes a model card, README.md; without it, README.md is IN's.
    *model_name* is its title, and *base_model* what IN is called on the Hub (``org/name``), where it is not from there.
    *report* is a file to write, outside OUT: the report as HTML, see :func:`~s4convert.jobs.report.write_report`.

    Raises:
        UsageError: an option is of the wrong type, out of range, or means nothing without another.
    """

    recipe: str | None = None
    save_mask: str | Path | None = None
    compensation: str | None = None
    calibration: str | Path | Sequence[str | Path] | None = None
    images: str | Path | Sequence[str | Path] | None = None
    num_samples: int | None = None
    window: int | None = None
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
    model_name: str | None = None
    base_model: str | None = None
    report: str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.shard_bytes
        if self.recipe not in (None, *RECIPES):
            raise UsageError(f"`recipe` {shown(self.recipe)} is none of {', '.join(RECIPES)}")
        self.check_use([self.mode])
        self._check_names()
        if self.evaluate is None:
            for name in ("evaluate_images", "conversation"):
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` is about questions to ask; give them with `evaluate`")
            if self.vision_tower is not None and self.calibration is None and not self.check_behaviour:
                raise UsageError(
                    "`vision_tower` is for calibration and hidden states, and here is neither; leave it out"
                )
        about_data = ("images", "num_samples", "window", "holdout", "save_statistics")
        if self.calibration is None:
            of_no_use = about_data if self.statistics is not None else (*about_data, "image_weight")
            for name in of_no_use:
                if getattr(self, name) is not None:
                    raise UsageError(f"`{name}` is about calibration data; give it with `calibration`")
        elif self.statistics is not None:
            raise UsageError("give `calibration` data, or `statistics` kept before, one of the two")
        with_a_model = (self.calibration, self.statistics, self.evaluate)
        if self.device is not None and not self.check_behaviour and all(given is None for given in with_a_model):
            raise UsageError("`device` is where models run, and here none does; leave it out")

    def _check_names(self) -> None:
        for name in ("model_name", "base_model"):
            if getattr(self, name) is not None and not self.card:
                raise UsageError(f"`{name}` is for the model card; leave it out, or leave out `card=False`")
        if self.base_model is not None:
            check_repo_id(self.base_model)
        title = self.model_name
        if title is not None and (not title.strip() or printable(title) != title):
            raise UsageError(f"`model_name` {shown(title)} is no title; give some words on one line")

    @property
    def mode(self) -> str:
        """:attr:`compensation`, or what stands for it."""
        if self.compensation is not None:
            return self.compensation
        if self.recipe is not None:
            return RECIPES[self.recipe].compensation
        return default_mode(has_data=self.calibration is not None or self.statistics is not None)

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
        from .evaluate import EvaluateOptions

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
        how = self.num_samples, holdout, self.device or "cpu", self.window
        return CalibrationData(self.calibration, self.images, *how)


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
        fits = known_before_fitting(self.options.mode, self.checkpoint, self.mask)
        if fits.description.trained:
            fits = replace(fits, trains=self.options.training.train)
        return make_plan(self.checkpoint, self.mask, fits, self.files)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the report must know of the mask and the statistics."""
        return notes_on(self.checkpoint, self.mask, self.options.kept_statistics)

    @property
    def bytes_needed(self) -> int:
        """Bytes that OUT, and the scratch of its fits, will take at the most."""
        options, layers = self.options, len(self.mask.touched_layers)
        scratch = scratch_bytes(options.mode, self.checkpoint, self.mask)
        if MODES[options.mode].trained:
            scratch += trained_bytes(self.checkpoint, self.mask, options.training.train)
        if options.calibration is not None and options.save_statistics is None:
            scratch += statistics_bytes(self.checkpoint, layers, whole=False)
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
    mask: Path | str | HeadMask | None = None,
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
    mask: Path | str | HeadMask | None = None,
    options: ConvertOptions | None = None,
    *,
    command: Sequence[str] | None = None,
    **settings: Any,
) -> Report:
    """Silence *mask*'s heads in the checkpoint *source* and write the result to *out*.

    *source* is a directory, or ``org/name``, ``org/name@revision`` on the Hub; *mask* a mask, a file, or
    ``org/name:file`` on the Hub. Without one, the mask is made by a recipe. *options* may be given one by one as
    keywords, too: *settings* are fields of :class:`ConvertOptions`. *command* are the arguments of the command line
    that the model card names; by default, this call.

    OUT is whole if this returns. If it raises, OUT is as it was, unless the message says otherwise.

    Raises:
        S4ConvertError: the subclass says what kind.
        VerificationError: what was written is not what the mask asks for.
    """
    planned = prepare(source, out, mask, options_of(ConvertOptions, options, settings))
    origin, mode = planned.checkpoint.source, planned.options.mode
    made_by = f's4convert.convert("{origin}", "OUT", mask, compensation="{mode}")'
    if command is not None:
        made_by = public_command(command, {str(source): origin, str(out): "OUT"})
    return _carry_out(planned, made_by)


def prepare(
    source: Path | str, out: Path | str, mask: Path | str | HeadMask | None, options: ConvertOptions
) -> PlannedConversion:
    """Open IN, read or make the mask, and refuse what cannot be done, all but what depends on what stands at OUT."""
    checkpoint, out = open_checkpoint(source, progress=options.progress), as_path(out)
    if options.report is not None:
        check_report(as_path(options.report), out, force=options.force)
    for name in ("report", "save_mask", "save_statistics"):
        path = getattr(options, name)
        if path is not None and as_path(path).resolve().is_relative_to(checkpoint.path.resolve()):
            raise UsageError(f"{path}: would be in IN, which is never written to; choose a place outside it")
    if mask is None:
        planned = _checked(checkpoint, out, check_recipe(checkpoint, options), options)
        check_replaceable(out, force=options.force)  # before scores take their time
        planned = replace(planned, mask=mask_by_recipe(checkpoint, options))
    else:
        for name in ("recipe", "save_mask"):
            if getattr(options, name) is not None:
                raise UsageError(f"`{name}` is about a mask to be made, and `mask` is given; leave one out")
        planned = _checked(checkpoint, out, options.read_mask(mask, checkpoint.geometry), options)
    for note in planned.notes:
        _log.warning("%s", note)
    return planned


def _checked(checkpoint: Checkpoint, out: Path, mask: HeadMask, options: ConvertOptions) -> PlannedConversion:
    if options.shard_size is not None and not checkpoint.is_torch:
        raise UsageError(f"{checkpoint.path}: its shards are safetensors and stay as they are; leave `shard_size` out")
    has_moments = options.calibration is not None or options.statistics is not None
    check_mode(options.mode, checkpoint, mask, has_moments=has_moments)
    base_card = None
    if options.card:
        base_card = read_base_card(checkpoint, base_model=options.base_model, model_name=options.model_name)
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
    for name in checkpoint.left_behind:
        _log.warning("%s: left behind, it may hold unpruned weights", checkpoint.path / name)
    for name, why in checkpoint.passed_by.items():
        _log.warning("%s: left behind, %s", checkpoint.path / name, why)
    private = perhaps_private(checkpoint.sidecars)
    if private:
        _log.warning("%s: %s will be in OUT as well; move away what is private", checkpoint.path, private)
    return planned


def _check_data(planned: PlannedConversion) -> Path | None:
    """The vision tower; refuses, before any work, what is seen to be wrong with it, data, statistics or the probe."""
    options, layers = planned.options, planned.mask.touched_layers
    data, kept, has_images = options.calibration_data, options.kept_statistics, False
    if options.device is not None:
        check_device(options.device)
    if MODES[options.mode].trained:
        check_training(data, options.training)
    if data is not None:
        options.statistics_in(planned.out)  # refuses an image weight
        has_images = data.check().has_images
    if options.probe_samples is not None and options.probe_samples.has_images:
        check_takes_images(planned.checkpoint)
        has_images = True
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
    from .evaluate import read_asked

    with images_called("evaluate_images"):
        return read_asked(checkpoint, options.evaluation)


@dataclass(frozen=True)
class Staged:
    """A conversion that stands in the staging directory, as *converted*, and was checked there.

    *calibration* describes the data behind its moments, see :func:`~s4convert.output.origin.describe_moments`.
    """

    plan: Plan
    converted: Checkpoint
    report: Report
    calibration: Mapping[str, Any] | None


def _carry_out(planned: PlannedConversion, made_by: str) -> Report:
    """Fit, stage, verify and commit."""
    checkpoint, options, asked = planned.checkpoint, planned.options, planned.asked
    if options.check_behaviour or asked is not None:
        require_stock_code(checkpoint)
    tasks = None
    if asked is not None:
        from .evaluate import embedded

        tasks = embedded(checkpoint, asked)
    picture = None if planned.base_card is None else draw_picture(planned.mask)
    with open_staging(planned.out) as staging, disk_flusher() as flusher:
        standing = check_replaceable(planned.out, force=options.force)
        staged = stage_and_check(planned, staging, flusher)
        plan, report = staged.plan, staged.report
        if report.advice is not None:
            _log.warning("%s", report.advice)
        origin = Origin(made_by, staged.calibration, options.shard_bytes)
        evaluation = figures = None
        if asked is not None and tasks is not None:
            evaluation = _evaluate(checkpoint, staged.converted, asked, tasks)
            figures = {"questions": asked.to_json()} | evaluation.to_keep().to_json()
            figures["answers"] = evaluation.side_by_side(_SHOWN_ANSWERS)
        card = {}
        if planned.base_card is not None:
            base = planned.base_card
            card = write_card(checkpoint, plan, report, base, picture, origin, figures, staging.checkpoint)
        said = manifest(checkpoint, plan, report, origin, card, figures)
        html = None if options.report is None else html_report(said, planned.out / MANIFEST_FILE)
        written = card | {MANIFEST_FILE: write_manifest(said, staging.checkpoint)}
        flusher.wait()
        _look_again(checkpoint, staged.converted, written)
        commit(staging, replace=standing if options.force else None)
    if html is not None and options.report is not None:
        try:
            write_output(as_path(options.report), html, force=options.force)
        except (StorageError, UsageError) as error:
            raise type(error)(f"{error}; {planned.out} is written, and s4convert report makes its report") from error
    return replace(report, evaluation=evaluation)


def _look_again(original: Checkpoint, converted: Checkpoint, written: Mapping[str, Digest]) -> None:
    """Raise StorageError unless IN, and what is staged beside the files *written* since, are what was checked."""
    original.check_unchanged()
    converted.check_unchanged(besides=written)
    with reading(converted.path):
        for name, (size, sha256) in written.items():
            path = converted.path / name
            if (path.stat().st_size, sha256_of(path)) != (size, sha256):
                raise StorageError(f"{path}: changed during the run; start again when it is at rest")


def _evaluate(original: Checkpoint, converted: Checkpoint, asked: Asked, tasks: Tasks) -> Evaluated:
    """What both answer to the same embeddings, which a conversion leaves as they are."""
    from .evaluate import Evaluated, answers_of

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
    passing, held_out = _calibrated(planned, staging)
    moments, is_trained = options.given_moments if passing is None else passing, MODES[options.mode].trained
    mode = REFIT if is_trained else options.mode
    fits = fit(mode, checkpoint, mask, staging.scratch, moments=moments, progress=options.progress)
    moments = moments if passing is None else passing.finish()
    if is_trained:
        fits, held_out = _trained(planned, fits, staging)
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
            probe=options.probe_samples,
            moments=moments,
            held_out=held_out,
            device=options.device or "cpu",
            notes=planned.notes,
            checks=checks,
            jobs=jobs,
            progress=options.progress,
        )
        calibration = describe_moments(moments)
        notes = (*report.notes, *notes_on_probe(options.probe_samples, calibration))
        report = replace(report, calibration=calibration or {}, notes=notes)
    return Staged(plan, claim.converted, report, calibration)


def _trained(planned: PlannedConversion, refit: Fits, staging: Staging) -> tuple[Fits, list[Inputs]]:
    """(what a training makes of *refit*, the samples that are held out of it); its model is gone afterwards."""
    checkpoint, options = planned.checkpoint, planned.options
    data, settings, progress = options.calibration_data, options.training, options.progress
    assert data is not None, "check_training has seen it"
    model = ResidentModel(checkpoint, device=data.device, progress=progress)
    inputs = training_inputs(checkpoint, data, settings, model=model, tower=planned.tower, progress=progress)
    how = model, inputs, data.holdout, settings, staging.scratch
    return distilled(checkpoint, planned.mask, refit, *how, progress=progress)


def _calibrated(planned: PlannedConversion, staging: Staging) -> tuple[PassingMoments | None, list[Inputs]]:
    """(the moments of the calibration data, which are still to pass; the samples that are held out of them).

    Without calibration data, they are None, and there is no sample.
    """
    options, data = planned.options, planned.options.calibration_data
    if data is None:
        return None, []
    geometry, whole = planned.checkpoint.geometry, options.save_statistics is not None
    # What is kept is for other masks as well, and so of every layer.
    wanted = range(geometry.num_layers) if whole else planned.mask.touched_layers
    inputs = data.inputs(planned.checkpoint, tower=planned.tower, progress=options.progress)
    held_out = [*compress(inputs, held_out_of(len(inputs), data.holdout))]
    kept = options.statistics_in(options.save_statistics or staging.scratch / "statistics")
    how = data.holdout, data.device
    passing = PassingMoments(
        planned.checkpoint, inputs, wanted, *how, kept=kept, whole=whole, progress=options.progress
    )
    return passing, held_out


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
