"""Distillation as a part of jobs: from calibration data to trained weights, and to the samples that judge them."""

from __future__ import annotations

from collections.abc import Sequence
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


def training_inputs(
    checkpoint: Checkpoint,
    data: CalibrationData,
    settings: TrainingSettings | None,
    *,
    model: ResidentModel | None = None,
    tower: Path | None = None,
    progress: bool = False,
) -> list[Inputs]:
    """The samples of *data* as a training by *settings* takes them, with the answers that those ask for.

    *model* is *checkpoint*'s, and is loaded if None where it is to answer. *tower* is the directory of the vision
    tower, as :func:`~s4convert.calibration.inputs.make_inputs` takes it.

    Raises:
        S4ConvertError: as :func:`~s4convert.calibration.inputs.make_inputs` says.
    """
    if settings is None or not settings.self_answers:
        return data.inputs(checkpoint, tower=tower, progress=progress)
    if model is None:
        model = ResidentModel(checkpoint, device=data.device, progress=progress)
    samples = own_answers(checkpoint, model, data.read.samples, tower=tower, progress=progress)
    return make_inputs(checkpoint, samples, tower=tower, device=data.device, progress=progress)


def distilled(
    checkpoint: Checkpoint,
    mask: HeadMask,
    refit: Fits,
    model: ResidentModel,
    inputs: Sequence[Inputs],
    holdout: float,
    settings: TrainingSettings,
    scratch: Path,
    *,
    progress: bool = False,
) -> tuple[Fits, list[Inputs]]:
    """(what a training by *settings* makes of *refit*, the share *holdout* of *inputs*, which are held out of it).

    *model* is *checkpoint*'s; *inputs* are :func:`training_inputs`.

    Raises:
        UsageError: there are too few samples to hold any out.
        S4ConvertError: as :func:`~s4convert.compensation.distillation.distill` says.
    """
    from ..compensation.distillation import distill  # torch takes a second to import

    flags = _held_out(len(inputs), holdout)
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
    inputs = training_inputs(checkpoint, data, settings, tower=tower, progress=progress)
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
