"""Scores the heads of a checkpoint by a metric."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..calibration.inputs import Inputs, describe, make_inputs
from ..calibration.samples import Samples
from ..calibration.stream import stream_layers
from ..checkpoint import Checkpoint
from ..choices import GAMMA, IMAGE_WEIGHT, LOSSES
from ..errors import CalibrationError, UsageError
from ..mask.head_scores import HeadScores, rising
from ..model.decoder import check_device
from ..progress import layer_bar
from ..version import __version__
from .fisher import Labels, resident_ladders, streamed_ladders
from .metrics import METRICS, Settings

_log = logging.getLogger(__name__)


def score_heads(
    checkpoint: Checkpoint,
    metric: str,
    *,
    samples: Samples | None = None,
    gamma: float = GAMMA,
    seed: int = 0,
    device: str = "cpu",
    loss: str = LOSSES[0],
    resident: bool = False,
    tower: Path | None = None,
    progress: bool = False,
) -> HeadScores:
    """A score for every head of *checkpoint* by the *metric*, a name in :data:`METRICS`.

    *samples* are calibration data; ``magnitude`` and ``random`` need none. *gamma* is the weight of the mean in
    ``cross-attention``, *seed* the seed of ``random`` and of the labels of ``fisher``, of which *loss* says where they
    stand, in ``all`` text or in the places of ``answers``; *resident* keeps the whole model on the device for it, and
    gives scores with ladders as without. *tower* is the directory of the vision tower, see
    :func:`~s4convert.model.front_end.open_front_end`. The same arguments on the same machine give the same scores, bit
    for bit. With calibration data, the provenance has the ``residual_energy`` that the schedule ``global`` divides by.

    Raises:
        UsageError: there is no such metric or device, another argument is wrong, or calibration data is missing.
        CalibrationError: the calibration data is malformed, or holds nothing that the metric can measure.
        CheckpointError: the checkpoint's front end or weights cannot be used.
        StorageError: a file cannot be read.
    """
    settings = Settings(gamma, seed, device, loss, resident)
    check_metric(metric, settings, has_data=samples is not None)
    if samples is None:
        return score_inputs(checkpoint, metric, [], settings, progress=progress)
    inputs = make_inputs(checkpoint, samples.samples, tower=tower, device=device, progress=progress)
    return score_inputs(checkpoint, metric, inputs, settings, progress=progress)


def score_inputs(
    checkpoint: Checkpoint,
    metric: str,
    inputs: list[Inputs],
    settings: Settings,
    *,
    progress: bool = False,
) -> HeadScores:
    """As :func:`score_heads`, for ready *inputs*, which are overwritten."""
    scorer, geometry = METRICS[metric], checkpoint.geometry
    provenance: dict[str, Any] = {
        "tool_version": __version__,
        "source": checkpoint.source,
        "fingerprint": checkpoint.fingerprint,
        "metric": metric,
        **scorer.provenance(settings),
    }
    if inputs:
        provenance["device"] = settings.device.partition(":")[0]
        provenance["calibration"] = describe(inputs) | {"image_weight": IMAGE_WEIGHT}
    if scorer.scorer is None:
        return _fisher_scores(checkpoint, inputs, settings, provenance, progress=progress)
    scores: list[tuple[float, ...]] = []
    with layer_bar(metric, geometry.num_layers, shown=progress) as bar:
        if not inputs:
            for layer in range(geometry.num_layers):
                scores.append(scorer.scorer(checkpoint, layer, settings).scores())
                bar.update(1)
        else:
            if metric == "cross-attention":
                _tell_unscored(inputs)
            energies = []
            observer = partial(scorer.scorer, checkpoint)
            for seen in stream_layers(
                checkpoint, inputs, lambda layer: observer(layer, settings), device=settings.device
            ):
                scores.append(seen.observer.scores())
                energies.append(seen.residual_energy)
                del seen  # free the moments of this layer before the next one
                bar.update(1)
            provenance["residual_energy"] = energies
    _check_finite(metric, scores)
    return HeadScores(geometry.num_layers, geometry.num_heads, tuple(scores), provenance)


def _fisher_scores(
    checkpoint: Checkpoint,
    inputs: list[Inputs],
    settings: Settings,
    provenance: dict[str, Any],
    *,
    progress: bool,
) -> HeadScores:
    labels = Labels(inputs, settings.loss, settings.seed)
    provenance["num_labels"] = labels.count
    run = resident_ladders if settings.resident else streamed_ladders
    ladders = run(checkpoint, inputs, labels, device=settings.device, progress=progress)
    _check_finite("fisher", [rising(ladder.order, ladder.cost) for ladder in ladders])
    return HeadScores.of_ladders(ladders, provenance)


def _check_finite(metric: str, scores: Sequence[Sequence[float]]) -> None:
    for layer, figures in enumerate(scores):
        for head, figure in enumerate(figures):
            if not math.isfinite(figure):
                raise CalibrationError(
                    f"{metric}: layer {layer}, head {head}: the score {figure} is not a finite number; check the "
                    "checkpoint's weights"
                )


def check_metric(metric: str, settings: Settings, *, has_data: bool) -> None:
    """Refuse a *metric* or *settings* that mean nothing.

    Raises:
        UsageError: as :func:`score_heads` says.
    """
    if metric not in METRICS:
        raise UsageError(f"`metric` {metric}: there is no such metric; use one of {', '.join(METRICS)}")
    if METRICS[metric].needs_data and not has_data:
        without = ", ".join(name for name, one in METRICS.items() if not one.needs_data)
        raise UsageError(f"`metric` {metric} needs calibration data; give `calibration`, or use one of {without}")
    if not math.isfinite(settings.gamma) or settings.gamma < 0:
        raise UsageError(f"`gamma` {settings.gamma}: give a weight of 0 or more")
    if settings.loss not in LOSSES:
        raise UsageError(f"`loss` {settings.loss!r} is none of {', '.join(LOSSES)}")
    if metric != "fisher" and (settings.loss != LOSSES[0] or settings.resident):
        raise UsageError("`loss` and `resident` are for `metric='fisher'`; leave them out")
    if settings.seed < 0:
        raise UsageError(f"`seed` {settings.seed}: give a number of 0 or more")
    check_device(settings.device)


def _tell_unscored(inputs: list[Inputs]) -> None:
    """Log the number of samples without an image; CalibrationError where that is all of them."""
    without = sum(not bool(sample.is_image.any()) for sample in inputs)
    if without == len(inputs):
        raise CalibrationError(
            "cross-attention: no sample has an image, and the score is of text that looks at images; "
            "give questions with images, or use another metric"
        )
    if without:
        _log.warning(
            "cross-attention: %d of %d samples have no image, so they have no score and do not count",
            without,
            len(inputs),
        )
