"""The error of a compensation: the mean squared change of the layer's attention output.

E(W') = E|W' x - W x|^2 = tr((W' - W) S (W' - W)^T) over the tokens whose second moment is S. For W' = W T that is the
sum of (W^T W) * ((T - 1) S (T - 1)^T), so W need be multiplied only once for all compensations of a layer; and for
one factor c per head it is the quadratic form (c - 1)^T G (c - 1) of the small head Gram G_ab = tr(W_a S_ab W_b^T).
Products run on the device of the moments, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..calibration.moments import Moments
from ..checkpoint.dtypes import Float64Array
from .head_mix import HeadMix
from .pruned_layer import PrunedLayer

if TYPE_CHECKING:
    import torch

_BLOCK = 512  # rows of a product of matrices at a time, as the whole would be as large as S


def mix_error(weight_gram: torch.Tensor, moments: Moments, mix: HeadMix) -> float:
    """E of *mix*, where *weight_gram* is W^T W [columns, columns]; a mix of values is left out of account."""
    import torch

    second, device = moments.tensor, moments.device
    gram, change = weight_gram.to(device), torch.from_numpy(mix.factors.astype(np.float64) - 1.0).to(device)
    if mix.transfer is None:
        blocks = (slice(first, first + _BLOCK) for first in range(0, len(change), _BLOCK))
        return sum(float(change[at] @ ((gram[at] * second[at]) @ change)) for at in blocks)
    # The rows of T - 1 that are not zero: all pruned ones, and kept ones with a factor.
    kept, pruned = (torch.from_numpy(columns).to(device) for columns in (mix.kept_columns, mix.pruned_columns))
    rows = torch.cat([kept[change[kept] != 0], pruned])
    moved = second.new_zeros(len(rows), len(change))
    moved[torch.arange(len(rows), device=device), rows] = change[rows]
    moved[-len(pruned) :].index_copy_(1, kept, torch.from_numpy(mix.transfer).to(device))
    return float((gram[rows][:, rows] * (moved @ second @ moved.T)).sum())


def head_gram(weight_gram: torch.Tensor, moments: Moments, head_dim: int) -> Float64Array:
    """G [num_heads, num_heads]: E[(W_a x_a) . (W_b x_b)], the outputs of heads a and b against each other."""
    import torch

    gram, columns = weight_gram.to(moments.device), len(weight_gram)
    heads = (slice(first, first + head_dim) for first in range(0, columns, head_dim))
    rows = [(gram[head] * moments.tensor[head]).sum(0).view(-1, head_dim).sum(1) for head in heads]
    array: Float64Array = torch.stack(rows).cpu().numpy()
    return array


def best_uniform_factor(gram: Float64Array, layer: PrunedLayer) -> float:
    """c* = 1 + <Y_P, Y_K> / |Y_K|^2: the one factor for all kept heads that makes E smallest.

    Where the kept heads' output is zero, no factor makes a difference, and it is 1.
    """
    kept, pruned = list(layer.kept), list(layer.pruned)
    power = float(gram[np.ix_(kept, kept)].sum())
    return 1.0 + float(gram[np.ix_(pruned, kept)].sum()) / power if power > 0 else 1.0
