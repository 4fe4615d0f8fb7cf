"""From a mask to the map of every layer that loses heads: each is fitted once, and then only read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..calibration.moments import LayerMoments, Moments
from ..checkpoint import Checkpoint
from ..errors import CompensationError, UsageError, enough_memory
from ..mask import HeadMask
from ..progress import layer_bar
from .error import mix_error
from .figures import Choice, LayerFigures, measure
from .head_mix import HeadMix
from .least_squares import least_squares, too_few_tokens
from .modes import DEFAULT_DAMPING, FITTED_MODES, MODES, REFIT, Mode
from .pruned_layer import PrunedLayer
from .training import TrainedRows, Training

_log = logging.getLogger(__name__)

# Gives the moments of a decoder layer; they are asked for one layer at a time and not kept.
MomentsSource: TypeAlias = Callable[[int], LayerMoments]

# What least squares is tried with where there are held-out tokens to choose by.
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, eq=False)
class Fits:
    """What *mode* makes of the layers that lose heads: *mixes* has the map of each, by layer.

    *choices* say what a fit to calibration data settled on, and *figures* how good it is, where there is such data.
    The maps, and trained weights, of the layers in *recovered* were read off converted weights, and so cannot vouch for
    them.

    Where a mode trains, *training* says what came of it. Unless the refit that it began with stays, *trains* are the
    letters of the projections whose weights it replaced, *trained* has these weights by layer and projection, and a
    layer's map only silences its pruned heads.
    """

    mode: str
    mixes: Mapping[int, HeadMix] = field(default_factory=dict)
    choices: Mapping[int, Choice] = field(default_factory=dict)
    figures: Mapping[int, LayerFigures] = field(default_factory=dict)
    recovered: frozenset[int] = frozenset()
    trained: Mapping[int, Mapping[str, TrainedRows]] = field(default_factory=dict)
    trains: str = ""
    training: Training | None = None

    @property
    def description(self) -> Mode:
        """The mode's row in the table of modes."""
        return MODES[self.mode]

    def choice(self, layer: int) -> Choice:
        """The mode of *layer*, which a fit to calibration data may have chosen."""
        return self.choices.get(layer, Choice(self.mode))

    def change(self, layer: int) -> str:
        """What kept columns of *layer*'s ``o_proj`` become, in words."""
        if self.description.trained and not self.trains:
            return MODES[REFIT].change
        if not self.description.from_mask_alone:
            return self.description.change
        mix = self.mixes[layer]
        return f"times {mix.factors[mix.kept_columns[0]]:.4f}"

    def to_json(self) -> dict[str, Any]:
        """What a fit to calibration data made of each layer, for a later check to do without the data; else empty.

        Factors stand there in full, one for each head; a least-squares map is too large for that, as are weights.
        """
        if not self.description.needs_moments:
            return {}
        return {
            str(layer): {
                "mode": choice.mode,
                "damping": choice.damping,
                "factors": self.mixes[layer].head_factors if self._has_factors(layer) else None,
            }
            for layer, choice in self.choices.items()
        }

    def _has_factors(self, layer: int) -> bool:
        return self.mixes[layer].is_diagonal and layer not in self.trained


def fit(
    mode: str,
    checkpoint: Checkpoint,
    mask: HeadMask,
    scratch: Path,
    *,
    moments: MomentsSource | None = None,
    progress: bool = False,
) -> Fits:
    """Fit *mode* to every layer of *checkpoint* that loses heads by *mask*, one layer in memory at a time.

    With *moments*, the error of a mode that does without them is measured, too. What is large of a map goes into the
    directory *scratch* and is mapped into memory from there.

    Raises:
        UsageError: there is no such mode, it needs *moments*, or *checkpoint*'s heads share what it needs of each.
        CompensationError: a map cannot be fitted, or the moments are not those of this checkpoint.
        CheckpointError: a weight is not finite.
        StorageError: a weight or the moments cannot be read.
    """
    check_mode(mode, checkpoint, mask, has_moments=moments is not None)
    if moments is None and MODES[mode].from_mask_alone:
        return known_before_fitting(mode, checkpoint, mask)
    mixes, choices, figures = {}, {}, {}
    with layer_bar("fit", len(mask.touched_layers), shown=progress) as bar:
        for number in mask.touched_layers:
            layer = pruned_layer(checkpoint, mask, number)
            with enough_memory(f"the fit of layer {number}"):
                given = None if moments is None else moments(number)
                layer = layer if given is None else replace(layer, device=given.train.device)
                choices[number], mix, measured = _fit_layer(mode, layer, given)
            if measured is not None:
                figures[number] = measured
            mixes[number] = keep(mix, number, scratch)
            del given, layer, mix  # a layer's weights and map must be gone before the next one's moments come
            bar.update(1)
    return Fits(mode, mixes, choices, figures)


def _fit_layer(
    mode: str, layer: PrunedLayer, moments: LayerMoments | None
) -> tuple[Choice, HeadMix, LayerFigures | None]:
    if moments is None:
        return *choose(mode, layer, None), None
    _check_size(layer, moments)
    few = too_few_tokens(layer, moments.train) if mode == "least-squares" else None
    if few is not None:
        layer.warn(few)
    choice, mix = choose(mode, layer, moments)
    return choice, mix, measure(layer, moments, choice, mix)


def known_before_fitting(mode: str, checkpoint: Checkpoint, mask: HeadMask) -> Fits:
    """The fits of a *mode* that goes by the mask alone, and no fit of any other; nothing is read.

    Raises:
        UsageError: as :func:`fit`, but for moments that are still to come.
    """
    check_mode(mode, checkpoint, mask, has_moments=True)
    if not MODES[mode].from_mask_alone:
        return Fits(mode)
    layers = (pruned_layer(checkpoint, mask, number) for number in mask.touched_layers)
    return Fits(mode, {layer.number: MODES[mode].fit(layer, None, DEFAULT_DAMPING) for layer in layers})


def check_mode(mode: str, checkpoint: Checkpoint, mask: HeadMask, *, has_moments: bool) -> None:
    """Refuse a *mode* that cannot be fitted.

    Raises:
        UsageError: as :func:`fit` says.
    """
    if mode not in MODES:
        raise UsageError(f"`compensation` {mode!r} is none of {', '.join(MODES)}")
    sharing = checkpoint.geometry.heads_per_group
    if MODES[mode].own_values and sharing > 1:
        # A kv head could only give to another where all its query heads are pruned, which few masks ask for, and the
        # heads of one group would be wholly alike: methods made for heads with values of their own mean nothing here.
        raise UsageError(
            f"layer {mask.touched_layers[0]}: compensation {mode} goes by each head's own V rows, but {sharing} heads "
            "share those of a kv head here; use least-squares, scale or none"
        )
    if MODES[mode].needs_moments and not has_moments:
        raise UsageError(
            f"compensation {mode} is fitted to calibration data; give it with `calibration`, or `statistics` of it, or "
            "use scale or none"
        )


def pruned_layer(checkpoint: Checkpoint, mask: HeadMask, number: int) -> PrunedLayer:
    """Layer *number* of *checkpoint*, which loses heads by *mask*, as fits see it; its weights are read when used."""
    read_weight = partial(checkpoint.read_projection, number)
    scale = None if mask.scale is None else mask.scale.get(number)
    return PrunedLayer(number, checkpoint.geometry, mask.pruned[number], scale, read_weight, _log.warning)


def keep(mix: HeadMix, layer: int, scratch: Path) -> HeadMix:
    """*mix*, whose transfer, tens of megabytes at the size of a 7B model, moves into a file in *scratch*."""
    if mix.transfer is None:
        return mix
    path, transfer = scratch / f"transfer-{layer:05}", np.ascontiguousarray(mix.transfer)
    path.write_bytes(transfer.data)  # np.save and tofile may say nothing where the disk is full
    # Copy on write: torch wants arrays that could be written to. A plain view, as a memmap hands its class on.
    return replace(mix, transfer=np.asarray(np.memmap(path, transfer.dtype, "c", shape=transfer.shape)))


def scratch_bytes(mode: str, checkpoint: Checkpoint, mask: HeadMask) -> int:
    """What :func:`keep` takes for all layers, at the most."""
    if MODES[mode].from_mask_alone:
        return 0
    head_bytes = 8 * checkpoint.geometry.head_dim**2
    return sum(head_bytes * len(heads) * (mask.num_heads - len(heads)) for heads in mask.pruned)


def choose(mode: str, layer: PrunedLayer, moments: LayerMoments | None) -> tuple[Choice, HeadMix]:
    """The fit of *mode*, or of the simpler mode that is best on the held-out moments where *mode*'s is not.

    Without held-out moments, the mode is the one asked for and the damping the default. What a user should know of
    a fit is told to the layer's *warn*.

    Raises:
        CompensationError: there is no fit.
    """
    train = None if moments is None else moments.train
    if mode not in FITTED_MODES or moments is None or moments.held_out is None:
        damping = DEFAULT_DAMPING if mode == "least-squares" else None
        return Choice(mode, damping), MODES[mode].fit(layer, train, DEFAULT_DAMPING)
    fits: dict[str, tuple[Choice, HeadMix]] = {}
    errors: dict[str, float] = {}
    for name in FITTED_MODES[: FITTED_MODES.index(mode) + 1]:
        if name == "least-squares":
            damping, mix, errors[name] = choose_damping(layer, moments.train, moments.held_out)
            fits[name] = Choice(name, damping), mix
        else:
            mix = MODES[name].fit(layer, train, DEFAULT_DAMPING)
            fits[name], errors[name] = (Choice(name), mix), mix_error(layer.weight_gram, moments.held_out, mix)
    smallest = min(errors.values())
    chosen = mode if errors[mode] <= smallest else min(errors, key=lambda name: errors[name])
    if chosen != mode:
        layer.warn(
            f"layer {layer.number}: on held-out tokens, the error of {mode} is {errors[mode]:.4g} and that of {chosen} "
            f"{errors[chosen]:.4g}, so {chosen} is used here; calibrate with more data"
        )
    return fits[chosen]


def choose_damping(layer: PrunedLayer, train: Moments, held_out: Moments) -> tuple[float, HeadMix, float]:
    """(damping of :data:`DAMPINGS`, fit to *train*, its E on *held_out*) with the smallest E.

    Raises:
        CompensationError: least squares has no solution.
    """
    best: tuple[float, HeadMix, float] | None = None
    for damping in DAMPINGS:
        mix = least_squares(layer, train, damping)
        error = mix_error(layer.weight_gram, held_out, mix)
        if best is None or error < best[2]:
            best = (damping, mix, error)
    assert best is not None
    return best


def _check_size(layer: PrunedLayer, moments: LayerMoments) -> None:
    columns = layer.geometry.num_columns("o")
    for part in (moments.train, moments.held_out):
        if part is not None and len(part.mean) != columns:
            raise CompensationError(
                f"layer {layer.number}: its moments are of {len(part.mean)} columns, but o_proj has {columns}; "
                "calibrate this checkpoint"
            )
