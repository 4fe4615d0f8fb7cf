"""Is what stands in a converted layer the compensation that its mode is defined as?

:mod:`~s4convert.verify.structure` compares every number with the map that was fitted, and would believe a map that a
wrong formula made. So every mode stands here a second time, from its definition and on purpose without the code that it
checks: what needs no data as the numbers that it gives, what is fitted by its normal equations. Judged are the weights
as they are stored; where the stored dtype rounds, so much is allowed and no more.

What the two share is what they are given: weights, mask, moments, and which mode and damping a layer has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..calibration.moments import Moments
from ..checkpoint import Checkpoint, StoredTensor
from ..checkpoint.dtypes import Float64Array, unit_in_last_place
from ..errors import VerificationError
from .claim import Claim

SLACK = 1e-6  # for arithmetic, in units of the largest number of a row
SAMPLED_STRETCHES, STRETCH = 8, 8  # rows of a weight: one map makes all of them, which the comparison of bytes has seen
TIE = 1e-9  # cosines this near are equal


def check_definition(claim: Claim, layer: int, moments: Moments | None) -> float | None:
    """Compare some rows of *layer*'s stored weights with the definition of its mode.

    *moments* are those that it was fitted to; without them, a fitted mode is not judged. With them, returns E, the mean
    squared change of the layer's attention output by the weights as they are stored.

    Raises:
        VerificationError: they are something else, or leave another E than the report says.
        StorageError: they cannot be read.
    """
    stored = _Stored.read(claim, layer)
    if stored.after[:, ~stored.is_kept].any():
        stored.refuse("a column of a pruned head is not zero")
    if stored.mode == "residual-transfer":
        _check_residual_transfer(claim, stored)
    elif stored.mode in ("none", "scale", "similarity"):
        factors = _defined_factors(claim, stored)
        if not _is_rounded(stored.after, stored.before * np.repeat(factors, stored.head_dim), stored.dtype):
            listed = ", ".join(f"{factor:.4g}" for factor in sorted(set(factors[list(stored.kept)])))
            stored.refuse(f"kept columns are not the original's times {listed}")
    if moments is None or stored.mode == "distill":  # which no moment defines
        return None
    if stored.mode in ("uniform-ls", "head-ls"):
        _check_fitted_factors(claim, stored, moments)
    elif stored.mode == "least-squares":
        _check_map(stored, moments)
    return _check_error(claim, stored, moments)


@dataclass(frozen=True, eq=False)
class _Stored:
    """Some rows of a layer's ``o_proj`` [rows, columns], *before* and *after*, and what is claimed of them."""

    layer: int
    where: str
    mode: str
    damping: float | None
    dtype: str
    head_dim: int
    num_heads: int
    pruned: tuple[int, ...]
    before: Float64Array
    after: Float64Array

    @staticmethod
    def read(claim: Claim, layer: int) -> _Stored:
        geometry, choice = claim.original.geometry, claim.fits.choice(layer)
        output = claim.converted.output_projection(layer)
        rows = sampled_rows(output.num_rows)
        return _Stored(
            layer,
            f"{claim.converted.path / output.shard}: {output.name} of layer {layer}",
            choice.mode,
            choice.damping,
            output.dtype,
            geometry.head_dim,
            geometry.num_heads,
            claim.mask.pruned[layer],
            read_some(claim.original, claim.original.output_projection(layer), rows),
            read_some(claim.converted, output, rows),
        )

    @cached_property
    def kept(self) -> tuple[int, ...]:
        return tuple(sorted(set(range(self.num_heads)) - set(self.pruned)))

    @cached_property
    def is_kept(self) -> npt.NDArray[np.bool_]:
        """For each column, whether its head stays."""
        return ~np.isin(np.arange(self.before.shape[1]) // self.head_dim, self.pruned)

    def by_head(self, columns: Float64Array) -> Float64Array:
        """The sums of *columns* [..., columns] over each head [num_heads]."""
        sums: Float64Array = columns.reshape(-1, self.num_heads, self.head_dim).sum(axis=(0, 2))
        return sums

    def refuse(self, difference: str) -> NoReturn:
        raise VerificationError(
            f"{self.where} is not what {self.mode} is by definition: {difference}; do not use it, and report this"
        )


def sampled_rows(num_rows: int) -> list[int]:
    """The numbers of some rows: stretches of them, spread evenly."""
    firsts = np.linspace(0, max(0, num_rows - STRETCH), SAMPLED_STRETCHES).round().astype(int)
    return sorted({row for first in firsts.tolist() for row in range(first, min(first + STRETCH, num_rows))})


def read_some(checkpoint: Checkpoint, tensor: StoredTensor, rows: list[int]) -> Float64Array:
    """The *rows* of *tensor* [len(rows), ...]; StorageError where they cannot be read."""
    stretches = np.split(np.array(rows), np.flatnonzero(np.diff(rows) != 1) + 1)
    return np.concatenate([checkpoint.read_rows(tensor, int(one[0]), len(one)) for one in stretches]).astype(np.float64)


def _is_rounded(found: Float64Array, wanted: Float64Array, dtype: str) -> bool:
    """Whether *found* [rows, ...] is *wanted*, rounded to *dtype*."""
    largest = np.maximum(np.abs(wanted), np.abs(found)).max(axis=-1, keepdims=True)
    return bool((np.abs(found - wanted) <= unit_in_last_place(wanted, dtype) / 2 + SLACK * largest).all())


# --- what needs no data -----------------------------------------------------------------------------------------


def _defined_factors(claim: Claim, stored: _Stored) -> Float64Array:
    """The factor of every head, 0 of pruned ones: 1, N / n or the mask's own, or a share of N by likeness."""
    kept, total = list(stored.kept), stored.num_heads
    factors = np.zeros(total)
    factors[kept] = 1.0
    if stored.mode == "scale":
        given = None if claim.mask.scale is None else claim.mask.scale.get(stored.layer)
        factors[kept] = total / len(kept) if given is None else given
    if stored.mode == "similarity":
        values = claim.original.read_projection(stored.layer, "v").reshape(total, -1)
        for k in kept:
            factors[k] = total / len(kept) + sum(max(_cosine(values[p], values[k]), 0.0) for p in stored.pruned)
        factors *= total / factors.sum()
    return factors


def _cosine(a: Float64Array, b: Float64Array) -> float:
    norms = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / norms if norms > 0 else 0.0


def _check_residual_transfer(claim: Claim, stored: _Stored) -> None:
    """V and O, head by head as the mode is defined; a bias of V goes the way of its rows."""
    heads, layer, mix = stored.num_heads, stored.layer, claim.fits.mixes[stored.layer]
    v = claim.original.read_projection(layer, "v").reshape(heads, -1)
    bias = _value_bias(claim.original, layer).reshape(heads, -1)
    o = stored.before.reshape(len(stored.before), heads, stored.head_dim).copy()
    cosines = {(p, k): _cosine(v[p], v[k]) for p in stored.pruned for k in stored.kept}
    for p in stored.pruned:
        largest = max(cosines[p, k] for k in stored.kept)
        nearest = [k for k in stored.kept if cosines[p, k] >= largest - TIE]
        # Of heads that are equally like it, any may take it.
        k = next((k for k in nearest if mix.values is not None and mix.values[k, p]), nearest[0])
        share = 0.1 * max(cosines[p, k], 0.0)
        for part in (v, bias):
            part[k] += share * (part[p] - part[k])
        o[:, k] += share * (o[:, p] - o[:, k])
        norm = math.sqrt(float(v[k] @ v[k]))
        if norm > 1.5 * math.sqrt(stored.head_dim):
            for part in (v, bias):
                part[k] *= math.sqrt(stored.head_dim) / norm
    for part in (v, bias):
        part[list(stored.pruned)] = 0.0
    o[:, list(stored.pruned)] = 0.0
    if not _is_rounded(stored.after, o.reshape(stored.after.shape), stored.dtype):
        stored.refuse("kept columns do not take what they should from the pruned heads")
    rows = claim.converted.projection(layer, "v", "weight")
    assert rows is not None, "a checkpoint without it cannot be opened"
    sampled = sampled_rows(rows.count)
    found = read_some(claim.converted, rows.tensor, [rows.first + row for row in sampled])
    wanted, found_bias = v.reshape(rows.count, -1)[sampled], _value_bias(claim.converted, layer)
    dtype = rows.tensor.dtype
    if not (_is_rounded(found, wanted, dtype) and _is_rounded(found_bias, bias.reshape(-1, 1), dtype)):
        stored.refuse("the rows of v_proj do not take what they should from the pruned heads")


def _value_bias(checkpoint: Checkpoint, layer: int) -> Float64Array:
    """The bias of ``v_proj`` [rows, 1]; zeros where there is none."""
    rows = checkpoint.projection(layer, "v", "bias")
    if rows is None:
        return np.zeros((checkpoint.geometry.num_rows("v"), 1))
    return checkpoint.read_rows(rows.tensor, rows.first, rows.count).astype(np.float64).reshape(-1, 1)


# --- what is fitted to moments ----------------------------------------------------------------------------------


def _check_fitted_factors(claim: Claim, stored: _Stored, moments: Moments) -> None:
    """For the factors c that the stored weights have: is G_KK (c - 1) = G_KP 1, or its sum over kept heads?

    With the heads' outputs Y_h, that is <sum_h (c_h - 1) Y_h, Y_k> = 0, as c is 0 for pruned heads. What rounding
    leaves in doubt of c_h, doubts that by |Y_h| |Y_k| at most.
    """
    power = stored.by_head(stored.before**2)
    known = power > 0
    unit = unit_in_last_place(stored.after, stored.dtype) / 2
    factors, doubt = np.ones(len(power)), np.zeros(len(power))
    np.divide(stored.by_head(stored.after * stored.before), power, out=factors, where=known)
    np.divide(stored.by_head(unit * np.abs(stored.before)), power, out=doubt, where=known)
    doubt += SLACK * np.maximum(1.0, np.abs(factors))
    by_column, doubt_by_column = (np.repeat(each, stored.head_dim) for each in (factors, doubt))
    off = np.abs(stored.after - stored.before * by_column) - doubt_by_column * np.abs(stored.before)
    if (off > unit + SLACK * np.abs(stored.after)).any():
        stored.refuse("the columns of a kept head do not have one factor")
    kept = list(stored.kept)
    if stored.mode == "uniform-ls":
        lowest, highest = ((factors + sign * doubt)[[k for k in kept if known[k]]] for sign in (-1, 1))
        if lowest.size and lowest.max() > highest.min():
            stored.refuse("kept heads do not have one factor")

    weight = claim.original.read_projection(stored.layer, "o")
    products = weight.T @ weight
    del weight
    products *= moments.second
    excess = products @ (by_column - 1.0)
    residual = stored.by_head(excess)[kept]
    at = range(0, len(products), stored.head_dim)
    norms = np.sqrt([max(products[i : i + stored.head_dim, i : i + stored.head_dim].sum(), 0.0) for i in at])
    doubt[~known & (norms > 0)] = np.inf
    allowed = norms[kept] * float((doubt * norms).sum())
    if stored.mode == "uniform-ls":
        residual, allowed = residual.sum(keepdims=True), allowed.sum(keepdims=True)
    if (np.abs(residual) > allowed).any():
        stored.refuse("its factors do not solve the normal equations of the moments")


def _check_map(stored: _Stored, moments: Moments) -> None:
    """Is (W' - W) S_:K + lambda (W' - W)_K = 0, the normal equations of least squares?

    What this leaves, times (S_KK + lambda 1)^-1, is how far W' is from their solution. That is judged, as it is
    sharper: the rounding of a number spreads over all of what is left.
    """
    import torch

    kept, second = np.flatnonzero(stored.is_kept), moments.tensor
    at = torch.from_numpy(kept).to(second.device)
    system = second[at][:, at]
    ridge = (stored.damping or 0.0) * float(system.diagonal().sum()) / len(kept)
    change = torch.from_numpy(stored.after - stored.before).to(second.device)
    residual = change @ second[:, at] + ridge * change[:, at]
    system.diagonal().add_(ridge)
    off = torch.linalg.solve(system, residual.T).T.cpu().numpy()
    if not _is_rounded(stored.after[:, kept], stored.after[:, kept] - off, stored.dtype):
        stored.refuse("it does not solve the normal equations of the moments")


def _check_error(claim: Claim, stored: _Stored, moments: Moments) -> float:
    """E of the stored weight, tr((W' - W) S (W' - W)^T), which must be what the report says, up to rounding."""
    import torch

    original, converted = claim.original, claim.converted
    change = converted.read_rows(converted.output_projection(stored.layer)).astype(np.float64)
    unit = unit_in_last_place(change[:, stored.is_kept], stored.dtype) / 2
    # |x_i| is sqrt(S_ii) in the root mean square: the most that the roundings of a row can make together.
    powers = np.maximum(moments.tensor.diagonal().cpu().numpy(), 0.0)
    rounding = float(np.sum((unit @ np.sqrt(powers[stored.is_kept])) ** 2))
    del unit
    change -= original.read_rows(original.output_projection(stored.layer))
    changed = torch.from_numpy(change).to(moments.device)
    products = changed.T @ changed
    products *= moments.tensor
    error, pruned = float(products.sum()), torch.from_numpy(np.flatnonzero(~stored.is_kept)).to(moments.device)
    # The change of a pruned head's columns is -W_P, so this is E of no compensation.
    none = float(products[pruned][:, pruned].sum())
    said = claim.fits.figures[stored.layer].train
    for name, found, stated, doubt in (("none", none, said.none, 0.0), ("the fit", error, said.fit, rounding)):
        difference = abs(math.sqrt(max(found, 0.0)) - math.sqrt(max(stated, 0.0)))
        if difference > math.sqrt(doubt) + 1e-4 * math.sqrt(max(none, 0.0)):
            stored.refuse(f"E of {name} is {found:.4g}, where the report has {stated:.4g}")
    return error
