"""Does the converted model compute what the mask asks for? Three models, side by side, layer by layer.

*original*: the input's weights. *reference*: the input's weights with a pre-hook on ``o_proj`` that applies
mask and compensation at run time; this is what pruning means. *converted*: the output's weights, nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from converter.checkpoint import Checkpoint
from converter.checkpoint.dtypes import EPSILON
from converter.decoder import LayerDecoder
from converter.errors import VerificationError
from converter.mask import HeadMask
from converter.progress import Progress
from converter.rewrite.compensation import column_factors
from converter.verify.probe import Probe

if TYPE_CHECKING:
    import torch

FLOAT32_TOLERANCE = 1e-5


@dataclass(frozen=True)
class LayerDelta:
    """Hidden states after one decoder layer, over all probe tokens.

    *mean_abs_delta* is the mean of |converted - original|, *relative_delta* the norm of that difference over
    the norm of the original, *reference_error* the norm of converted - reference over the norm of the reference.
    *own_delta* is what this layer's edit changes by itself: the relative difference between the converted layer
    and the original one on the converted model's input; 0 for a layer that the mask does not touch.
    """

    layer: int
    pruned: tuple[int, ...]
    mean_abs_delta: float
    relative_delta: float
    own_delta: float
    reference_error: float


@dataclass(frozen=True)
class BehaviourReport:
    """The figures of the behaviour check; *tolerance* is the largest *reference_error* that passes."""

    probe: str
    tolerance: float
    layers: tuple[LayerDelta, ...]


def check_behaviour(
    original: Checkpoint,
    converted: Checkpoint,
    mask: HeadMask,
    compensation: str,
    probe: Probe,
    *,
    progress: Progress,
) -> BehaviourReport:
    """Run *probe* through the three models; *progress* is told 1 after every layer.

    Raises:
        VerificationError: a hidden state before the first touched layer is not bit-identical to the original's,
            a touched layer makes no difference, converted and reference disagree, or a value is not finite.
    """
    tolerance = _tolerance(original, mask, compensation)
    decoder = LayerDecoder(original)
    start = list(probe.samples)
    states = _States(start, start, start, start)
    rows = []
    for layer in range(original.geometry.num_layers):
        states = _run_layer(decoder, original, converted, mask, compensation, layer, states)
        row = _compare(layer, mask, states)
        _judge(row, mask, tolerance)
        rows.append(row)
        progress(1)
    return BehaviourReport(probe.description, tolerance, tuple(rows))


@dataclass(frozen=True)
class _States:
    """The residual stream of every probe sample, in each of the three models.

    *unedited* is the converted model's, but for the last layer, which is the original's.
    """

    original: list[torch.Tensor]
    reference: list[torch.Tensor]
    converted: list[torch.Tensor]
    unedited: list[torch.Tensor]


def _run_layer(
    decoder: LayerDecoder,
    original: Checkpoint,
    converted: Checkpoint,
    mask: HeadMask,
    compensation: str,
    layer: int,
    before: _States,
) -> _States:
    import torch

    decoder.load(original, layer)
    after_original = [decoder.forward(hidden) for hidden in before.original]
    if not mask.touched_layers or layer < mask.touched_layers[0]:
        after_reference = after_original  # the same weights, inputs and code: nothing is hooked yet
    elif mask.pruned[layer]:
        factors = torch.from_numpy(column_factors(mask, layer, original.geometry, compensation))
        after_reference = [decoder.forward(hidden, lambda heads: heads * factors) for hidden in before.reference]
    else:
        after_reference = [decoder.forward(hidden) for hidden in before.reference]
    unedited = [decoder.forward(hidden) for hidden in before.converted] if mask.pruned[layer] else []
    decoder.load(converted, layer)
    after_converted = [decoder.forward(hidden) for hidden in before.converted]
    return _States(after_original, after_reference, after_converted, unedited or after_converted)


def _compare(layer: int, mask: HeadMask, states: _States) -> LayerDelta:
    import torch

    original, reference, converted, unedited = (
        torch.cat([hidden.flatten() for hidden in model]).double()
        for model in (states.original, states.reference, states.converted, states.unedited)
    )
    delta = converted - original
    return LayerDelta(
        layer=layer,
        pruned=mask.pruned[layer],
        mean_abs_delta=float(delta.abs().mean()),
        relative_delta=float(delta.norm() / original.norm()),
        own_delta=float((converted - unedited).norm() / unedited.norm()),
        reference_error=float((converted - reference).norm() / reference.norm()),
    )


def _judge(row: LayerDelta, mask: HeadMask, tolerance: float) -> None:
    if not math.isfinite(row.mean_abs_delta) or not math.isfinite(row.reference_error):
        raise VerificationError(f"layer {row.layer}: hidden states are not finite; try --compensate none")
    if row.layer < mask.touched_layers[0] and row.mean_abs_delta != 0:
        raise VerificationError(
            f"layer {row.layer}: hidden states differ from the original's, but the mask begins at layer "
            f"{mask.touched_layers[0]}; convert again"
        )
    if row.pruned and row.own_delta == 0:
        raise VerificationError(f"layer {row.layer}: pruning {len(row.pruned)} heads changed nothing; check the mask")
    if not row.reference_error <= tolerance:
        raise VerificationError(
            f"layer {row.layer}: hidden states are {row.reference_error:.2e} off the reference "
            f"(at most {tolerance:.1e} is rounding); convert again"
        )


def _tolerance(original: Checkpoint, mask: HeadMask, compensation: str) -> float:
    """float32 rounding where the stored columns are exact, the stored dtype's where they had to be rounded."""
    dtypes = set()
    for layer in mask.touched_layers:
        factors = set(column_factors(mask, layer, original.geometry, compensation).tolist()) - {0.0}
        output = original.projection(layer, "o", "weight")
        if output is not None and factors != {1.0}:
            dtypes.add(output.dtype)
    return max([FLOAT32_TOLERANCE, *(EPSILON[dtype] for dtype in dtypes)])
