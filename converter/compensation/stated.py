"""The fits that a manifest states, checked without the calibration data that they were made of.

Factors stand in the manifest. A least-squares map does not: it is too large. But W'_K - W_K = W_P A, so it can be read
off the two weights, and only a mix of the pruned heads can be read off so without a remainder. That shows that the
converted columns are such a mix, not that it was the best one for the data; for that there are the moments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint
from ..checkpoint.dtypes import Float64Array, unit_in_last_place
from ..errors import VerificationError
from ..mask import HeadMask
from .figures import Choice
from .fitting import Fits, check_mode, keep, pruned_layer
from .head_mix import HeadMix
from .pruned_layer import PrunedLayer
from .training import TrainedRows

SLACK = 1 + 1e-6  # for the arithmetic of the check itself


def stated_fits(
    mode: str,
    original: Checkpoint,
    converted: Checkpoint,
    mask: HeadMask,
    choices: Mapping[int, Choice],
    factors: Mapping[int, tuple[float, ...]],
    scratch: Path,
    trains: str = "",
) -> Fits:
    """The fits of a *mode* that needs moments, in their absence.

    *choices* are the modes of layers. *factors*, one for each head, are those of the layers that have some; the maps of
    the others are read off *converted*, and kept in the directory *scratch*. *trains* are the letters of the
    projections that a training replaced; their weights are *converted*'s own.

    Raises:
        VerificationError: a map cannot be read off the converted weights.
        CheckpointError, StorageError: a weight is not finite, or cannot be read.
    """
    check_mode(mode, original, mask, has_moments=True)
    mixes, trained = {}, {}
    for number in mask.touched_layers:
        layer = pruned_layer(original, mask, number)
        if number in factors:
            mixes[number] = layer.mix(np.array([factors[number][head] for head in layer.kept]))
            continue
        if trains:
            mixes[number] = layer.mix(1.0)
            trained[number] = {projection: own_rows(converted, number, projection) for projection in trains}
            continue
        output = converted.output_projection(number)
        mix = recover_mix(
            layer,
            converted.read_rows(output).astype(np.float64),
            output.dtype,
            f"{converted.path / output.shard}: {output.name}",
        )
        mixes[number] = keep(mix, number, scratch)
    return Fits(
        mode, mixes, choices, recovered=frozenset(mixes.keys() - factors.keys()), trained=trained, trains=trains
    )


def own_rows(converted: Checkpoint, layer: int, projection: str) -> TrainedRows:
    """The weight of *layer*'s *projection* as it stands in *converted*."""
    rows = converted.projection(layer, projection, "weight")
    assert rows is not None, "a checkpoint without it cannot be opened"
    tensor, begin = rows.tensor, rows.first
    return TrainedRows(tensor.dtype, lambda first, count: converted.read_bytes(tensor, begin + first, count))


def recover_mix(layer: PrunedLayer, after: Float64Array, dtype: str, where: str) -> HeadMix:
    """The map by which ``o_proj`` of *layer* became *after* [rows, columns], which is stored as *dtype*.

    Raises:
        VerificationError: no map of pruned onto kept heads gives *after*; *where* names the tensor.
        CheckpointError, StorageError: the original weight cannot be read.
    """
    transfer, is_mix = nearest_transfer(layer, layer.read_weight("o"), after, dtype)
    if not is_mix.all():
        raise VerificationError(
            f"{where} of layer {layer.number} is no mix of the original's heads with the pruned ones; convert again"
        )
    return layer.mix(1.0, transfer)


def nearest_transfer(
    layer: PrunedLayer, before: Float64Array, after: Float64Array, dtype: str
) -> tuple[Float64Array, npt.NDArray[np.bool_]]:
    """(the transfer A with W_K + W_P A nearest to *after*, for each kept column whether only rounding is left of it).

    Rounding moves an element by half a unit in its last place at most, and the remainder of a fit is the shortest that
    there is; so, column by column, its norm is at most that of those halves. *before* is W, *after* is stored as
    *dtype*, both [rows, columns].
    """
    change = after[:, layer.kept_columns] - before[:, layer.kept_columns]
    sources = before[:, layer.pruned_columns]
    rounding = np.linalg.norm(unit_in_last_place(after[:, layer.kept_columns], dtype) / 2, axis=0)
    for solve in (_by_normal_equations, _by_singular_values):  # the second takes five times as long
        try:
            transfer = solve(sources, change)
        except np.linalg.LinAlgError:
            continue
        is_mix: npt.NDArray[np.bool_] = np.linalg.norm(change - sources @ transfer, axis=0) <= rounding * SLACK
        if is_mix.all():
            break
    return transfer, is_mix


def _by_normal_equations(sources: Float64Array, change: Float64Array) -> Float64Array:
    """The least-squares solution, its error corrected once; LinAlgError where *sources* depend on each other."""
    gram = sources.T @ sources
    solution: Float64Array = np.linalg.solve(gram, sources.T @ change)
    solution += np.linalg.solve(gram, sources.T @ (change - sources @ solution))
    return solution


def _by_singular_values(sources: Float64Array, change: Float64Array) -> Float64Array:
    solution: Float64Array = np.linalg.lstsq(sources, change, rcond=None)[0].astype(np.float64)
    return solution
