"""The main job: from a checkpoint and a mask to a new checkpoint."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..checkpoint.loader_names import check_loader_name
from ..checkpoint.refusals import refuse_delta_name
from ..checkpoint.silence import silent_heads
from ..compensation import MomentsSource
from ..errors import CheckpointError, S4ConvertError, UsageError, VerificationError
from ..mask import HeadMask, Schedule
from ..mask.formats.layer_lists import Polarity
from ..model.decoder import require_stock_code
from ..output.card import BaseCard, read_base_card, write_card
from ..output.manifest import manifest, write_manifest
from ..progress import byte_bar
from ..rewrite.plan import Plan, make_plan
from ..rewrite.staging import bytes_needed, check_destination, commit, free_bytes, open_staging
from ..rewrite.writer import disk_flusher, stage
from ..sources import load_mask, open_checkpoint
from ..verify.checks import check_converted, default_jobs
from ..verify.report import Report

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conversion:
    """A conversion that has been checked against the disk and not been carried out yet.

    *replace* says that a checkpoint may stand at *out*, to be replaced. *base_card* is the model card that OUT's is
    built on; None where IN's README.md is to stay as it is.
    """

    checkpoint: Checkpoint
    out: Path
    plan: Plan
    replace: bool
    base_card: BaseCard | None

    @property
    def bytes_needed(self) -> int:
        """Bytes that OUT will take at the most."""
        return bytes_needed(self.plan)

    @property
    def bytes_free(self) -> int:
        """Bytes that are free where OUT will stand."""
        return free_bytes(self.out)

    def to_json(self) -> dict[str, Any]:
        """The plan, and the space it takes, for a script to read."""
        return self.plan.to_json() | {"needed_bytes": self.bytes_needed, "free_bytes": self.bytes_free}

    def to_text(self) -> str:
        """The plan, and the space it takes, for a person to read."""
        plan = self.plan
        lines = [f"{edit.tensor.name}  {edit.describe()}  [{edit.tensor.shard}]" for edit in plan.edits]
        lines += [
            "",
            f"{plan.mask.num_pruned} heads in {len(plan.mask.touched_layers)} layers, "
            f"compensation {plan.compensation.mode}",
            f"{len(plan.edits)} edits in spans of {plan.num_bytes:,} bytes",
            f"{self.bytes_needed:,} bytes needed, {self.bytes_free:,} free",
            "nothing was written, and no weight was looked at (--dry-run)",
        ]
        return "\n".join(lines)


def prepare(
    source: Path | str,
    out: Path | str,
    mask: Path | str | HeadMask,
    *,
    polarity: Polarity | None = None,
    schedule: Schedule | None = None,
    compensation: str = "scale",
    moments: MomentsSource | None = None,
    shard_bytes: int | None = None,
    force: bool = False,
    allow_converted: bool = False,
    allow_name: bool = False,
    card: bool = True,
    progress: bool = False,
) -> Conversion:
    """Open IN, read the mask, make the plan, and refuse what cannot be done; nothing is written.

    A *source* or a *mask* on the Hub is downloaded into its client's cache; *progress* shows bars for that.

    Raises:
        CheckpointError, MaskError, UsageError, HubError, StorageError: as the class says.
    """
    checkpoint, out = open_checkpoint(source, progress=progress), Path(out)
    if isinstance(mask, HeadMask):
        if polarity is not None or schedule is not None:
            raise UsageError("a polarity or a schedule is about a mask file, and this mask is none; leave them out")
        mask.check_fits(checkpoint.geometry)
    else:
        mask = load_mask(mask, checkpoint.geometry, polarity=polarity, schedule=schedule, progress=progress)
    if shard_bytes is not None and not checkpoint.is_torch:
        raise UsageError(f"{checkpoint.path}: its shards are safetensors and stay as they are; leave --shard-size out")
    plan = make_plan(checkpoint, mask, compensation, moments=moments, shard_bytes=shard_bytes)
    check_destination(checkpoint, out, plan, force=force)
    refuse_delta_name(out)
    if not allow_name:
        check_loader_name(checkpoint.family, checkpoint.known_as, out)
    if not allow_converted:
        _refuse_converted(checkpoint)
    for name in checkpoint.left_behind:
        _log.warning("%s: left behind, it may hold unpruned weights", checkpoint.path / name)
    return Conversion(checkpoint, out, plan, force, read_base_card(checkpoint) if card else None)


def carry_out(
    conversion: Conversion,
    *,
    check_behaviour: bool = True,
    jobs: int | None = None,
    command: str | None = None,
    progress: bool = False,
) -> Report:
    """Stage, verify and commit *conversion*; OUT exists if and only if this returns.

    *command* is what the model card says it was made by; by default, a call of :func:`convert`.
    With *check_behaviour* off, the byte-by-byte check is still made. *progress* shows bars on stderr.

    Raises:
        VerificationError: the staged checkpoint is not what the mask asks for.
        CheckpointError, StorageError: as the class says.
    """
    checkpoint, plan = conversion.checkpoint, conversion.plan
    if jobs is None:
        jobs = default_jobs()
    if jobs < 1:
        raise UsageError(f"{jobs} jobs can do nothing; give one or more")
    if check_behaviour:
        require_stock_code(checkpoint)
    with open_staging(conversion.out, replace=conversion.replace) as staging, disk_flusher() as flusher:
        with byte_bar("write", plan.file_bytes, shown=progress) as bar:
            staged = stage(checkpoint, plan, staging.directory, flusher, jobs=jobs, progress=bar.update)
        try:
            staged_at = _open_staged(staged.directory)
            report = check_converted(
                checkpoint,
                staged_at,
                plan.mask,
                plan.compensation,
                check_behaviour=check_behaviour,
                jobs=jobs,
                progress=progress,
            )
        except S4ConvertError:
            checkpoint.check_unchanged()  # where IN changed, that is what is wrong
            raise
        checkpoint.check_unchanged()
        report = replace(report, fits=plan.compensation.fits, stored_errors=plan.compensation.stored_errors(staged_at))
        advised = report.advice(plan.compensation.mode)
        if advised is not None:
            _log.warning("%s", advised)
        if conversion.base_card is not None:
            made_by = command or f's4convert.convert("{checkpoint.source}", "OUT", mask, "{plan.compensation.mode}")'
            written = write_card(checkpoint, plan, report, conversion.base_card, made_by, staging.directory)
            report = report.with_card(written)
        write_manifest(manifest(checkpoint, plan, report), staging.directory)
        flusher.wait()
        commit(staging, replace=conversion.replace)
    return report


def convert(
    source: Path | str,
    out: Path | str,
    mask: Path | str | HeadMask,
    *,
    polarity: Polarity | None = None,
    schedule: Schedule | None = None,
    compensation: str = "scale",
    moments: MomentsSource | None = None,
    check_behaviour: bool = True,
    shard_bytes: int | None = None,
    force: bool = False,
    allow_converted: bool = False,
    allow_name: bool = False,
    card: bool = True,
    jobs: int | None = None,
    progress: bool = False,
) -> Report:
    """Silence *mask*'s heads in the checkpoint *source* and write the result to *out*.

    *source* is a directory, or ``org/name``, ``org/name@revision`` on the Hub; *mask* a mask, a file, or
    ``org/name:file`` on the Hub. A file may need *polarity* (0/1 flags) or *schedule* (scores), as
    :func:`~s4convert.mask.files.load_mask` says.

    *compensation* is a row of :data:`~s4convert.compensation.modes.MODES`: ``scale`` (kept heads times num_heads /
    kept), ``none``, and so on. *moments* gives, for a layer's number, the moments of that layer's head outputs over
    calibration data: ``uniform-ls``, ``head-ls`` and ``least-squares`` are fitted to them, and with any other mode
    they serve to measure its error. It is called one layer at a time, from any thread, and more than once for a layer.

    *shard_bytes* bounds the shards that are built anew from ``.bin`` files. *force* replaces a checkpoint that stands
    at *out*; *allow_converted* accepts a *source* that was converted before; *allow_name* an *out* that stock LLaVA
    would load as another class. *card* writes a model card (README.md) into *out*; without it, README.md is *source*'s.

    Raises:
        S4ConvertError: the subclass says what kind; nothing was written under *out*.
    """
    conversion = prepare(
        source,
        out,
        mask,
        polarity=polarity,
        schedule=schedule,
        compensation=compensation,
        moments=moments,
        shard_bytes=shard_bytes,
        force=force,
        allow_converted=allow_converted,
        allow_name=allow_name,
        card=card,
        progress=progress,
    )
    return carry_out(conversion, check_behaviour=check_behaviour, jobs=jobs, progress=progress)


def _open_staged(directory: Path) -> Checkpoint:
    try:
        return Checkpoint.open(directory)
    except CheckpointError as error:  # IN was sound, so the fault is the writing's
        raise VerificationError(str(error)) from error


def _refuse_converted(checkpoint: Checkpoint) -> None:
    hint = "convert the original instead, or insist with --allow-converted"
    if checkpoint.manifest is not None:
        raise UsageError(
            f"{checkpoint.known_as}: was converted before, and its compensation would be folded in twice; {hint}"
        )
    for layer in range(checkpoint.geometry.num_layers):
        silent = silent_heads(checkpoint, layer)
        if silent:
            raise UsageError(f"{checkpoint.known_as}: layer {layer}: head {silent[0]} is zero already; {hint}")
