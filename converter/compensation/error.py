"""The error of a compensation: the mean squared change of the layer's attention output.

E(W') = E|W' x - W x|^2 = tr((W' - W) S (W' - W)^T) over the tokens whose second moment is S. For W' = W T that is the
sum of (W^T W) * ((T - 1) S (T - 1)^T), so W need be multiplied only once for all compensations of a layer; and for
one factor c per head it is the quadratic form (c - 1)^T G (c - 1) of the small head Gram G_ab = tr(W_a S_ab W_b^T).
"""

from __future__ import annotations

import numpy as np

from ..calibration.moments import Moments
from ..checkpoint.dtypes import Float64Array
from .head_mix import ROW_BLOCK, HeadMix
from .pruned_layer import PrunedLayer


def mix_error(weight_gram: Float64Array, moments: Moments, mix: HeadMix) -> float:
    """E of *mix*, where *weight_gram* is W^T W [columns, columns]; a mix of values is left out of account."""
    change = mix.factors.astype(np.float64) - 1.0
    if mix.transfer is None:
        # By rows, as a matrix of products would be as large as S.
        blocks = (slice(first, first + ROW_BLOCK) for first in range(0, len(change), ROW_BLOCK))
        return sum(float(change[at] @ ((weight_gram[at] * moments.second[at]) @ change)) for at in blocks)
    # The rows of T - 1 that are not zero: all pruned ones, and kept ones with a factor.
    rows = np.concatenate([mix.kept_columns[change[mix.kept_columns] != 0], mix.pruned_columns])
    difference = np.zeros((len(rows), len(change)))
    difference[np.arange(len(rows)), rows] = change[rows]
    difference[np.ix_(np.arange(len(rows) - len(mix.pruned_columns), len(rows)), mix.kept_columns)] = mix.transfer
    import torch  # can do it on a GPU

    moved, second = (torch.from_numpy(matrix).to(moments.device) for matrix in (difference, moments.second))
    spread = (moved @ second @ moved.T).cpu().numpy()
    return float(np.sum(weight_gram[np.ix_(rows, rows)] * spread))


def head_gram(weight_gram: Float64Array, moments: Moments, head_dim: int) -> Float64Array:
    """G [num_heads, num_heads]: E[(W_a x_a) . (W_b x_b)], the outputs of heads a and b against each other."""
    num_heads = len(weight_gram) // head_dim
    gram = np.empty((num_heads, num_heads))
    for head in range(num_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        products = weight_gram[rows] * moments.second[rows]
        gram[head] = products.sum(axis=0).reshape(num_heads, head_dim).sum(axis=1)
    return gram


def best_uniform_factor(gram: Float64Array, layer: PrunedLayer) -> float:
    """c* = 1 + <Y_P, Y_K> / |Y_K|^2: the one factor for all kept heads that makes E smallest.

    Where the kept heads' output is zero, no factor makes a difference, and it is 1.
    """
    kept, pruned = list(layer.kept), list(layer.pruned)
    power = float(gram[np.ix_(kept, kept)].sum())
    return 1.0 + float(gram[np.ix_(pruned, kept)].sum()) / power if power > 0 else 1.0
