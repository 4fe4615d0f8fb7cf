"""Does the converted model compute what the mask asks for? Three models, side by side, layer by layer.

*original*: the input's weights. *reference*: the input's weights with a pre-hook on ``o_proj`` that applies
mask and compensation at run time; this is what pruning means. *converted*: the output's weights, nothing else.
Where a compensation mixes the heads' values, the reference's ``v_proj`` is mixed in memory, in float32, too; where one
trains weights, these stand in the reference's, and its hook silences the pruned heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.inputs import Inputs, describe
from ..calibration.moments import MODALITIES
from ..checkpoint import Checkpoint, StoredTensor
from ..checkpoint.dtypes import EPSILON, Float32Array
from ..compensation import Fits, HeadMix
from ..compensation.training import TrainedRows
from ..errors import VerificationError
from ..mask import HeadMask
from ..model.decoder import HeadsHook, LayerDecoder, full_float32
from ..model.output_head import OutputHead
from ..progress import Advance
from .claim import Claim
from .deltas import Distance
from .next_token import NextToken, compare_next_token
from .probe import Probe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _MixedCheckpoint(Checkpoint):
    """A checkpoint of which the tensors in *mixed* hold other values; they are in float32."""

    mixed: Mapping[str, Float32Array]

    def read_rows(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> Float32Array:
        if tensor.name not in self.mixed:
            return super().read_rows(tensor, first, count)
        return self.mixed[tensor.name][first : None if count is None else first + count]


def with_trained_weights(original: Checkpoint, layer: int, trained: Mapping[str, TrainedRows]) -> _MixedCheckpoint:
    """*original* with the weights *trained* in the place of *layer*'s projections of these names; nothing is written.

    Raises:
        StorageError: the weights cannot be read.
    """
    mixed: dict[str, Float32Array] = {}
    for projection, given in trained.items():
        rows = original.projection(layer, projection, "weight")
        assert rows is not None, "a checkpoint without it cannot be opened"
        values = np.array(mixed.get(rows.tensor.name, original.read_rows(rows.tensor)))
        values[rows.first : rows.first + rows.count] = given.values(0, rows.count)
        mixed[rows.tensor.name] = values
    return _with(original, mixed)


def with_mixed_values(original: Checkpoint, layer: int, mix: HeadMix) -> _MixedCheckpoint:
    """*original* with the rows of *layer*'s ``v_proj``, weight and bias, that *mix* changes; nothing is written.

    Multiplying values by a matrix over the heads before the attention is the same as doing so to their rows: this is
    what a hook on the output of ``v_proj`` would compute.

    Raises:
        StorageError: the weights cannot be read.
    """
    mixed: dict[str, Float32Array] = {}
    for kind in ("weight", "bias"):
        rows = original.projection(layer, "v", kind)
        if rows is None:
            continue
        values = np.array(mixed.get(rows.tensor.name, original.read_rows(rows.tensor)))
        part = slice(rows.first, rows.first + rows.count)
        values[part] = mix.apply_to_values(values[part])
        mixed[rows.tensor.name] = values
    return _with(original, mixed)


def _with(original: Checkpoint, mixed: Mapping[str, Float32Array]) -> _MixedCheckpoint:
    inherited = {field.name: getattr(original, field.name) for field in fields(Checkpoint)}
    return _MixedCheckpoint(**inherited, mixed=mixed)


FLOAT32_TOLERANCE = 1e-5
_ROWS = 512  # of a weight in float64 at a time


@dataclass(frozen=True)
class Apart:
    """How far the converted model's hidden states are from the *original*'s and from the *reference*'s."""

    original: Distance
    reference: Distance


@dataclass(frozen=True)
class LayerDelta:
    """Hidden states after one decoder layer.

    *apart* is by modality, ``text`` and ``image``, as far as the probe has tokens of it. Over all its tokens:
    *mean_abs_delta* is the mean of |converted - original|, *relative_delta* the norm of that difference over the norm
    of the original, *reference_error* the norm of converted - reference over the norm of the reference.

    In a layer that loses heads, *scale_factor* is the S4 scale s, and *best_factor* is c*, the one factor for all kept
    heads that would change the attention output least on the probe.

    Of this layer alone, because rounding adds up from layer to layer: on the converted model's own input,
    *own_delta* is the relative difference to the original layer, *own_error* that to the hooked original layer.
    In one that loses heads, *error_left* is what the compensation leaves of E, the mean squared change of the attention
    output; above 1, no compensation would be better. It is None where the pruned heads say nothing.
    """

    layer: int
    pruned: tuple[int, ...]
    mean_abs_delta: float
    relative_delta: float
    reference_error: float
    own_delta: float
    own_error: float
    scale_factor: float | None = None
    best_factor: float | None = None
    error_left: float | None = None
    apart: Mapping[str, Apart] = field(default_factory=dict)


@dataclass(frozen=True)
class BehaviourReport:
    """The figures of the behaviour check; *tolerance* is the largest *own_error* of a touched layer that passes.

    *probe* and *weakness* are the probe's, in words, and *data* is what it comes to, see
    :func:`~s4convert.calibration.inputs.describe`.
    """

    probe: str
    data: Mapping[str, Any]
    tolerance: float
    layers: tuple[LayerDelta, ...]
    next_token: NextToken
    weakness: str = ""


def check_behaviour(claim: Claim, probe: Probe, *, device: str = "cpu", advance: Advance) -> BehaviourReport:
    """Run *probe* through the three models on *device*; *advance* is told 1 after every layer.

    Every weight of the two checkpoints' layers is read once, and a thread reads ahead; then the original's final norm
    and ``lm_head``, which no conversion changes.

    Raises:
        VerificationError: a hidden state before the first touched layer is not bit-identical to the original's,
            a touched layer makes no difference or another one than the hook's, an untouched layer makes a
            difference, or a value is not finite.
        CheckpointError: weights do not fit the stock code.
        StorageError: they cannot be read.
    """
    tolerance = _tolerance(claim.original, claim.mask, claim.fits)
    layers, states = _through_layers(claim, probe, tolerance, device, advance)
    head = OutputHead(claim.original, device)
    said = compare_next_token(head, probe.samples, vars(states))
    return BehaviourReport(probe.description, describe(probe.samples), tolerance, tuple(layers), said, probe.weakness)


def _through_layers(
    claim: Claim, probe: Probe, tolerance: float, device: str, advance: Advance
) -> tuple[list[LayerDelta], _States]:
    """(the figures of every layer, the residual streams behind the last one)."""
    import torch

    original, converted, mask, fits = claim.original, claim.converted, claim.mask, claim.fits
    decoder = LayerDecoder(original, device)
    shortest = min(range(len(probe.samples)), key=lambda sample: len(probe.samples[sample].is_image))
    states = _States(*[[sample.hidden.to(device) for sample in probe.samples]] * 3)
    places = _places(probe.samples, device)
    layers = range(original.geometry.num_layers)
    loaded = decoder.load_each((side, layer) for layer in layers for side in (original, converted))
    rows = []
    for layer in layers:
        mix = fits.mixes.get(layer)
        hook: HeadsHook | None = None if mix is None else mix.apply_to_heads
        before = states
        with full_float32():
            next(loaded)  # the original's
            heads: list[torch.Tensor] = []
            after_original = [decoder.forward(hidden, _kept_in(heads)) for hidden in before.original]
            best_factor = _best_factor(heads, decoder.output_weight, mix) if mix is not None else None
            heads.clear()
            # One sample is enough to compare two layers on the same input, so the shortest does.
            own_heads: list[torch.Tensor] = []
            own_original = decoder.forward(before.converted[shortest], _kept_in(own_heads))
            own_weight = decoder.output_weight.clone()
            if mix is not None and mix.values is not None:
                mixed = with_mixed_values(original, layer, mix)
                decoder.load(mixed, layer, only=mixed.mixed)
            if layer in fits.trained:
                trained = with_trained_weights(original, layer, fits.trained[layer])
                decoder.load(trained, layer, only=trained.mixed)
            if layer < mask.touched_layers[0]:
                after_reference = after_original  # the same weights, inputs and code
            else:
                after_reference = [decoder.forward(hidden, hook) for hidden in before.reference]
            own_reference = decoder.forward(before.converted[shortest], hook)

            next(loaded)  # the converted checkpoint's
            after_converted = [decoder.forward(hidden, _kept_in(heads)) for hidden in before.converted]
            own_converted = after_converted[shortest]
            error_left = None
            if mix is not None:
                outputs = (own_heads[0], own_weight), (heads[shortest], decoder.output_weight)
                error_left = _error_left(*outputs, torch.from_numpy(mix.kept_columns).to(device))

        states = _States(after_original, after_reference, after_converted)
        apart = {modality: states.apart(of_samples) for modality, of_samples in places.items()}
        of_all = Distance.total(one.original for one in apart.values())
        row = LayerDelta(
            layer=layer,
            pruned=mask.pruned[layer],
            mean_abs_delta=of_all.mean_abs_delta,
            relative_delta=of_all.relative_delta,
            reference_error=Distance.total(one.reference for one in apart.values()).relative_delta,
            own_delta=Distance.between(own_converted[0], own_original[0]).relative_delta,
            own_error=Distance.between(own_converted[0], own_reference[0]).relative_delta,
            scale_factor=None if mix is None else mask.scale_factor(layer),
            best_factor=best_factor,
            error_left=error_left,
            apart=apart,
        )
        _judge(row, mask, tolerance)
        rows.append(row)
        advance(1)
    return rows, states


@dataclass(frozen=True)
class _States:
    """The residual stream of every probe sample, in each of the three models."""

    original: list[torch.Tensor]
    reference: list[torch.Tensor]
    converted: list[torch.Tensor]

    def apart(self, places: Sequence[torch.Tensor]) -> Apart:
        """The distances over the tokens at *places*, their numbers in every sample."""

        def between(other: list[torch.Tensor]) -> Distance:
            triples = zip(self.converted, other, places, strict=True)
            return Distance.total(Distance.between(found[0, at], wanted[0, at]) for found, wanted, at in triples)

        return Apart(between(self.original), between(self.reference))


def _places(samples: Sequence[Inputs], device: str) -> dict[str, list[torch.Tensor]]:
    """The numbers of the tokens of each modality that there is, in every sample."""
    masks = {modality: [s.is_image == (modality == "image") for s in samples] for modality in MODALITIES}
    return {
        modality: [mask.nonzero()[:, 0].to(device) for mask in of_samples]
        for modality, of_samples in masks.items()
        if any(mask.any() for mask in of_samples)
    }


def _kept_in(heads: list[torch.Tensor]) -> HeadsHook:
    """A hook that changes nothing and puts what it sees into *heads*."""

    def keep(outputs: torch.Tensor) -> torch.Tensor:
        heads.append(outputs)
        return outputs

    return keep


def _best_factor(heads: list[torch.Tensor], weight: torch.Tensor, mix: HeadMix) -> float:
    """c* = <Y, Y_K> / |Y_K|^2 over all tokens, for Y the output of all heads and Y_K that of the kept ones."""
    kept = weight.new_zeros(weight.shape[1])
    kept[mix.kept_columns.tolist()] = 1.0
    with full_float32():
        pairs = [((outputs[0] @ weight.T).double(), (outputs[0] * kept @ weight.T).double()) for outputs in heads]
    power = sum(float(of_kept.square().sum()) for _, of_kept in pairs)
    return sum(float((of_all * of_kept).sum()) for of_all, of_kept in pairs) / power if power else 1.0


def _error_left(
    original: tuple[torch.Tensor, torch.Tensor], converted: tuple[torch.Tensor, torch.Tensor], kept: torch.Tensor
) -> float | None:
    """|Y' - Y|^2 / |Y_K - Y|^2 over all tokens; Y is of the *original* (heads, weight), Y_K of its *kept* columns."""
    (heads, weight), (new_heads, new_weight) = ((x[0].double(), w) for x, w in (original, converted))
    heads_kept, none, left = heads[:, kept], 0.0, 0.0
    for first in range(0, len(weight), _ROWS):
        rows, new_rows = (part[first : first + _ROWS].double() for part in (weight, new_weight))
        output = heads @ rows.T
        none += float((heads_kept @ rows[:, kept].T - output).square().sum())
        left += float((new_heads @ new_rows.T - output).square().sum())
    return left / none if none else None


def _judge(row: LayerDelta, mask: HeadMask, tolerance: float) -> None:
    where = f"layer {row.layer}"
    if not all(math.isfinite(figure) for figure in (row.relative_delta, row.reference_error, row.own_error)):
        raise VerificationError(
            f"{where}: hidden states are not finite; check IN's weights, or try `compensation='none'`"
        )
    if row.layer < mask.touched_layers[0] and row.mean_abs_delta != 0:
        raise VerificationError(
            f"{where}: hidden states differ from the original's, but the mask begins at layer "
            f"{mask.touched_layers[0]}; convert again"
        )
    if not row.pruned and row.own_delta != 0:
        raise VerificationError(f"{where}: computes something else than the original's; convert again")
    if row.pruned and row.own_delta == 0:
        raise VerificationError(f"{where}: pruning {len(row.pruned)} heads changed nothing; check the mask")
    if row.pruned and row.own_error > tolerance:
        raise VerificationError(
            f"{where}: is {row.own_error:.1e} off the hooked original (at most {tolerance:.1e} is rounding); "
            "convert again"
        )


def _tolerance(original: Checkpoint, mask: HeadMask, fits: Fits) -> float:
    """float32 rounding where the stored columns are exact, the stored dtype's where they had to be rounded."""
    dtypes = set()
    for layer in mask.touched_layers:
        if _rounds(fits, layer):
            dtypes.add(original.output_projection(layer).dtype)
    return max([FLOAT32_TOLERANCE, *(EPSILON[dtype] for dtype in dtypes)])


def _rounds(fits: Fits, layer: int) -> bool:
    """Whether kept columns change at all and are rounded; a map that took a fit is taken to do so."""
    mix = fits.mixes[layer]
    if layer in fits.trained:  # as they are stored
        return False
    return not fits.description.from_mask_alone or bool((mix.factors[mix.kept_columns] != 1.0).any())
