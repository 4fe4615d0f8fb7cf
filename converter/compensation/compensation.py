"""The compensation of a whole conversion: a map for each layer that loses heads, made when it is asked for."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

from ..calibration.moments import LayerMoments
from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import Float64Array
from ..errors import CheckpointError, CompensationError, UsageError
from ..mask import HeadMask
from .error import weight_error
from .head_mix import HeadMix
from .held_out import Choice, choose
from .layer_fit import LayerFit, measure_fit
from .least_squares import too_few_tokens
from .modes import DEFAULT_DAMPING, MODES, Mode
from .pruned_layer import PrunedLayer

_log = logging.getLogger(__name__)

# Gives the moments of a decoder layer; they are asked for one layer at a time and not kept.
MomentsSource: TypeAlias = Callable[[int], LayerMoments]


class Compensation(ABC):
    """Mode *mode* for the layers of *checkpoint* that lose heads by *mask*; any thread may ask for any layer.

    A layer's map lives as long as somebody holds it: at the size of a 7B model it takes tens of megabytes. One is made
    at a time, so that one layer's weights and moments are in memory at a time.
    """

    def __init__(self, mode: str, checkpoint: Checkpoint, mask: HeadMask) -> None:
        """Nothing is read yet.

        Raises:
            UsageError: there is no such mode, or *checkpoint*'s heads share what it needs of each.
        """
        _check_mode(mode, checkpoint, mask)
        self.mode = mode
        self._checkpoint = checkpoint
        self._mask = mask
        self._lock = threading.Lock()
        self._mixes: WeakValueDictionary[int, HeadMix] = WeakValueDictionary()
        self._told: set[str] = set()

    @property
    def description(self) -> Mode:
        """The mode's row in the table of modes."""
        return MODES[self.mode]

    def mix(self, layer: int) -> HeadMix:
        """The map of *layer*, which must lose heads.

        Raises:
            CompensationError: it cannot be fitted, or the moments are not those of this checkpoint.
            CheckpointError: a weight is not finite.
            VerificationError: it cannot be read off the converted weights.
            StorageError: a weight cannot be read.
        """
        with self._lock:
            mix = self._mixes.get(layer)
            if mix is None:
                mix = self._mixes[layer] = self._make(self._describe(layer))
            return mix

    @abstractmethod
    def is_recovered(self, layer: int) -> bool:
        """Whether the layer's map is read off the converted weights, and so cannot vouch for them."""

    @abstractmethod
    def _make(self, layer: PrunedLayer) -> HeadMix:
        """The map of *layer*."""

    def _describe(self, layer: int) -> PrunedLayer:
        def read_weight(projection: str) -> Float64Array:
            return read_projection(self._checkpoint, layer, projection)

        scale = None if self._mask.scale is None else self._mask.scale.get(layer)
        return PrunedLayer(layer, self._checkpoint.geometry, self._mask.pruned[layer], scale, read_weight, self._tell)

    def _tell(self, sentence: str) -> None:
        """Warn of something once, however often a layer's map is made."""
        if sentence not in self._told:
            self._told.add(sentence)
            _log.warning("%s", sentence)


class FittedCompensation(Compensation):
    """A compensation made from weights and, where the mode needs them, the moments of calibration data.

    What a fit chose (its damping, a simpler mode) is remembered, so that making it again is quick and gives the same.
    """

    def __init__(self, mode: str, checkpoint: Checkpoint, mask: HeadMask, moments: MomentsSource | None = None) -> None:
        """With *moments*, also a mode that does without them has its errors measured, see :attr:`fits`.

        Raises:
            UsageError: as the base class says, or the mode needs *moments*.
        """
        super().__init__(mode, checkpoint, mask)
        if self.description.needs_moments and moments is None:
            raise UsageError(
                f"compensation {mode} is fitted to calibration data; give it with --calibration, or use scale or none"
            )
        self._moments = moments
        self._choices: dict[int, Choice] = {}
        self._factors: dict[int, list[float]] = {}
        self._fits: dict[int, LayerFit] = {}

    @property
    def fits(self) -> Mapping[int, LayerFit]:
        """The figures of every layer whose map was made so far; none where there are no moments."""
        return MappingProxyType(dict(sorted(self._fits.items())))

    def is_recovered(self, layer: int) -> bool:
        return False

    def stored_errors(self, converted: Checkpoint) -> dict[int, float]:
        """E of the weights that *converted* stores, rounded as they are, in every layer of :attr:`fits`."""
        errors: dict[int, float] = {}
        for layer in self.fits:
            assert self._moments is not None, "without moments there are no fits"
            before, after = (read_projection(checkpoint, layer, "o") for checkpoint in (self._checkpoint, converted))
            errors[layer] = weight_error(before, after, self._moments(layer).train)
        return errors

    def change(self, layer: int) -> str:
        """What kept columns of *layer*'s ``o_proj`` become, in words; nothing is read for it."""
        if not self.description.from_mask_alone:
            return self.description.change
        mix = self.description.fit(self._describe(layer), None, DEFAULT_DAMPING)
        return f"times {mix.factors[mix.kept_columns[0]]:.4f}"

    def to_json(self) -> dict[str, Any]:
        """What a mode that needs moments made of each layer, for a later check to do without them; else empty.

        Factors stand there in full, one for each head; a least-squares map is too large for that.
        """
        if not self.description.needs_moments:
            return {}
        return {
            str(layer): {"mode": choice.mode, "damping": choice.damping, "factors": self._factors.get(layer)}
            for layer, choice in sorted(self._choices.items())
        }

    def _make(self, layer: PrunedLayer) -> HeadMix:
        choice = self._choices.get(layer.number)
        if choice is not None and not MODES[choice.mode].needs_moments:
            return MODES[choice.mode].fit(layer, None, DEFAULT_DAMPING)
        moments = None if self._moments is None else self._moments(layer.number)
        if moments is not None:
            _check_size(layer, moments)
        if choice is not None and moments is not None:
            return MODES[choice.mode].fit(layer, moments.train, choice.damping or DEFAULT_DAMPING)
        if self.mode == "least-squares" and moments is not None:
            few = too_few_tokens(layer, moments.train)
            if few is not None:
                self._tell(few)
        choice, mix = choose(self.mode, layer, moments)
        self._choices[layer.number] = choice
        if mix.is_diagonal:
            self._factors[layer.number] = [float(factor) for factor in mix.factors[:: mix.head_dim]]
        if moments is not None:
            self._fits[layer.number] = measure_fit(layer, moments, choice, mix)
        return mix


def read_projection(checkpoint: Checkpoint, layer: int, projection: str) -> Float64Array:
    """The whole weight of *layer*'s projection ``q``, ``k``, ``v`` or ``o``, [rows, columns].

    Raises:
        CheckpointError: it holds NaN or infinity.
        StorageError: it cannot be read.
    """
    rows = checkpoint.projection(layer, projection, "weight")
    assert rows is not None, "a checkpoint without it cannot be opened"
    weight = checkpoint.read_rows(rows.tensor, rows.first, rows.count)
    if not np.isfinite(weight).all():
        raise CheckpointError(
            f"{checkpoint.path / rows.tensor.shard}: {rows.tensor.name} (layer {layer}) holds NaN or infinity; "
            "mend the checkpoint first"
        )
    return weight.astype(np.float64)


def _check_mode(mode: str, checkpoint: Checkpoint, mask: HeadMask) -> None:
    if mode not in MODES:
        raise UsageError(f"compensation {mode!r} is none of {', '.join(MODES)}")
    sharing = checkpoint.geometry.heads_per_group
    if MODES[mode].own_values and sharing > 1:
        # A kv head could only give to another where all its query heads are pruned, which few masks ask for, and the
        # heads of one group would be wholly alike: methods made for heads with values of their own mean nothing here.
        raise UsageError(
            f"layer {mask.touched_layers[0]}: compensation {mode} goes by each head's own V rows, but {sharing} heads "
            "share those of a kv head here; use least-squares, scale or none"
        )


def _check_size(layer: PrunedLayer, moments: LayerMoments) -> None:
    columns = layer.geometry.num_columns("o")
    for part in (moments.train, moments.held_out):
        if part is not None and len(part.mean) != columns:
            raise CompensationError(
                f"layer {layer.number}: its moments are of {len(part.mean)} columns, but o_proj has {columns}; "
                "calibrate this checkpoint"
            )
