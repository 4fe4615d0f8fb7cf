"""Distillation as a part of jobs: from calibration data to trained weights, and to the samples that judge them."""

from __future__ import annotations

from itertools import compress
from pathlib import Path

from ..calibration.answers import own_answers
from ..calibration.inputs import Inputs, make_inputs
from ..calibration.judges import judging
from ..calibration.statistics import CalibrationData, held_out_of
from ..checkpoint import Checkpoint
from ..compensation import Fits
from ..compensation.training import TrainingSettings
from ..errors import UsageError
from ..mask import HeadMask
from ..model.resident import ResidentModel


def check_training(data: CalibrationData | None, settings: TrainingSettings) -> None:
    """Refuse what a training by *settings* cannot begin with.

    Raises:
        UsageError: there is no *data*, none of it is to be held out, or there is no question in it to answer.
        CalibrationError, StorageError: the data is wrong, or cannot be read.
    """
    if data is None:
        raise UsageError(
            "compensation distill is trained on calibration data; give it with `calibration`, or use least-squares"
        )
    samples = data.check().samples
    if not data.holdout or all(file.window is None for file in data.read.files):  # else texts are still to be cut up
        _held_out(len(samples), data.holdout)
    if settings.self_answers and not any(sample.turns for sample in samples):
        raise UsageError("the `calibration` data has no questions to answer, only texts; leave `self_answers` out")


def distilled(
    checkpoint: Checkpoint,
    mask: HeadMask,
    refit: Fits,
    data: CalibrationData,
    settings: TrainingSettings,
    scratch: Path,
    *,
    model: ResidentModel | None = None,
    tower: Path | None = None,
    progress: bool = False,
) -> tuple[Fits, list[Inputs]]:
    """(what a training by *settings* on *data* makes of *refit*, the samples that are held out of it).

    *model* is *checkpoint*'s, loaded if None. *tower* is the directory of the vision tower, as
    :func:`~s4convert.calibration.inputs.make_inputs` takes it.

    Raises:
        UsageError: there are too few samples to hold any out.
        S4ConvertError: as :func:`~s4convert.compensation.distillation.distill` and :func:`make_inputs` say.
    """
    from ..compensation.distillation import distill  # torch takes a second to import

    if model is None:
        model = ResidentModel(checkpoint, device=data.device, progress=progress)
    inputs = _inputs(checkpoint, data, settings, model, tower=tower, progress=progress)
    flags = _held_out(len(inputs), data.holdout)
    pupils, held_out = ([one for one, out in zip(inputs, flags, strict=True) if out == wanted] for wanted in (0, 1))
    judges = judging(held_out)
    return distill(checkpoint, mask, refit, model, pupils, judges, settings, scratch, progress=progress), held_out


def held_out_inputs(
    checkpoint: Checkpoint,
    data: CalibrationData,
    settings: TrainingSettings | None,
    *,
    tower: Path | None = None,
    progress: bool = False,
) -> list[Inputs]:
    """The samples of *data* that are held out of a training by *settings*, or of any fit; all where none are."""
    inputs = _inputs(checkpoint, data, settings, None, tower=tower, progress=progress)
    return [*compress(inputs, held_out_of(len(inputs), data.holdout))] or inputs


def _held_out(num_samples: int, holdout: float) -> list[bool]:
    """Which samples judge; UsageError where none does."""
    flags = held_out_of(num_samples, holdout)
    if not any(flags):
        raise UsageError(
            f"`holdout` {holdout:g} of {num_samples} samples is none, and compensation distill is judged by held-out "
            "ones; give more `calibration` data, or a larger share"
        )
    return flags


def _inputs(
    checkpoint: Checkpoint,
    data: CalibrationData,
    settings: TrainingSettings | None,
    model: ResidentModel | None,
    *,
    tower: Path | None,
    progress: bool,
) -> list[Inputs]:
    if settings is None or not settings.self_answers:
        return data.inputs(checkpoint, tower=tower, progress=progress)
    if model is None:
        model = ResidentModel(checkpoint, device=data.device, progress=progress)
    samples = own_answers(checkpoint, model, data.read.samples, tower=tower, progress=progress)
    return make_inputs(checkpoint, samples, tower=tower, device=data.device, progress=progress)
