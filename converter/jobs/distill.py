"""Distillation as a part of jobs: from calibration data to trained weights, and to the samples that judge them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..calibration.answers import own_answers
from ..calibration.comparison import judging
from ..calibration.inputs import Inputs, make_inputs
from ..calibration.samples import Sample
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
        UsageError: there is no *data*, none of it is held out, or there is no question in it to answer.
        CalibrationError, StorageError: the data is wrong, or cannot be read.
    """
    if data is None:
        raise UsageError(
            "compensation distill is trained on calibration data; give it with `calibration`, or use least-squares"
        )
    samples = data.check().samples
    held_out = held_out_of(len(samples), data.holdout)
    if not any(held_out):
        raise UsageError(
            f"`holdout` {data.holdout:g} of {len(samples)} samples is none, and compensation distill is judged by "
            "held-out ones; give more `calibration` data, or a larger share"
        )
    if settings.self_answers and not any(sample.turns for sample in samples):
        raise UsageError(f"{data.file}: has no questions to answer, only texts; leave `self_answers` out")


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
    """(what a training by *settings* on *data* makes of *refit*, the samples that judge it).

    *model* is *checkpoint*'s, loaded if None. *tower* is the directory of the vision tower, as
    :func:`~s4convert.calibration.inputs.make_inputs` takes it.

    Raises:
        S4ConvertError: as :func:`~s4convert.compensation.distillation.distill` and :func:`make_inputs` say.
    """
    from ..compensation.distillation import distill  # torch takes a second to import

    if model is None:
        model = ResidentModel(checkpoint, device=data.device, progress=progress)
    samples: Sequence[Sample] = data.read.samples
    if settings.self_answers:
        samples = own_answers(checkpoint, model, samples, tower=tower, progress=progress)
    inputs = make_inputs(checkpoint, samples, tower=tower, device=data.device, progress=progress)
    held_out = held_out_of(len(inputs), data.holdout)
    pupils = [sample for sample, out in zip(inputs, held_out, strict=True) if not out]
    judges = judging([sample for sample, out in zip(inputs, held_out, strict=True) if out])
    return distill(checkpoint, mask, refit, model, pupils, judges, settings, scratch, progress=progress), judges


def held_out_inputs(
    checkpoint: Checkpoint,
    data: CalibrationData,
    settings: TrainingSettings | None,
    *,
    tower: Path | None = None,
    progress: bool = False,
) -> list[Inputs]:
    """The samples of *data* that judge a training by *settings*, or any fit; of all samples where none is held out."""
    every = data.read.samples
    held_out = held_out_of(len(every), data.holdout)
    samples: Sequence[Sample] = judging([s for s, out in zip(every, held_out, strict=True) if out] or every)
    if settings is not None and settings.self_answers:
        model = ResidentModel(checkpoint, device=data.device, progress=progress)
        samples = own_answers(checkpoint, model, samples, tower=tower, progress=progress)
    return make_inputs(checkpoint, samples, tower=tower, device=data.device, progress=progress)
