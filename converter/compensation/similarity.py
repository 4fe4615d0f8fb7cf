"""Two methods that go by how alike the V rows of two heads are; they were tried before least squares."""

from __future__ import annotations

import math

import numpy as np

from ..checkpoint.dtypes import Float64Array
from .head_mix import HeadMix
from .pruned_layer import PrunedLayer


def rows_by_head(layer: PrunedLayer) -> Float64Array:
    """The weight of ``v_proj``, [num_heads, head_dim * hidden_size]; only without grouped-query attention."""
    return layer.read_weight("v").reshape(layer.geometry.num_heads, -1)


def cosines(rows: Float64Array) -> Float64Array:
    """The cosines [num_heads, num_heads] of *rows* [num_heads, ...]; 0 where one of the two is zero."""
    norms = np.linalg.norm(rows, axis=1)
    products = np.outer(norms, norms)
    similar: Float64Array = np.divide(rows @ rows.T, products, out=np.zeros_like(products), where=products > 0)
    return similar


def similarity(layer: PrunedLayer) -> HeadMix:
    """Kept heads take, on top of the S4 scale N / n, a share of each pruned head as large as they are like it.

    Kept head k's factor is N / n + the sum over pruned heads p of max(cosine of V_p and V_k, 0). These factors sum to
    more than the N that was meant, which has destroyed a LLaVA-7B; so they are normalised to sum to N, and another sum
    is told to the layer's *warn*.
    """
    num_heads, kept = layer.geometry.num_heads, list(layer.kept)
    alike = cosines(rows_by_head(layer))[np.ix_(list(layer.pruned), kept)]
    factors = num_heads / len(kept) + np.maximum(alike, 0.0).sum(axis=0)
    total = float(factors.sum())
    if round(total, 2) != num_heads:
        layer.warn(
            f"layer {layer.number}: similarity: the factors of its kept heads sum to {total:.2f} where {num_heads} is "
            "meant; they are normalised"
        )
    return layer.mix(factors * (num_heads / total))


BETA = 0.1
LARGEST_NORM = 1.5  # of V_k, in units of sqrt(head_dim)


def residual_transfer(layer: PrunedLayer) -> HeadMix:
    """Each pruned head gives a little of itself to the kept head that is most like it; all transfers as one map.

    For each pruned head p, in order, with k the kept head whose V rows have the largest cosine with p's:
    beta' = beta * max(cosine, 0); V_k += beta' (V_p - V_k); if |V_k|_F > 1.5 sqrt(head_dim), V_k is rescaled to
    sqrt(head_dim); O_k += beta' (O_p - O_k). Cosines are those of the original rows. A bias of V is mixed as its rows
    are. *values* of the result are those of V, the rest those of O.
    """
    geometry = layer.geometry
    rows = rows_by_head(layer)
    similarity = cosines(rows)
    values, outputs = np.eye(geometry.num_heads), np.eye(geometry.num_heads)
    kept = list(layer.kept)
    for pruned in layer.pruned:
        head = kept[int(np.argmax(similarity[pruned, kept]))]
        share = BETA * max(float(similarity[pruned, head]), 0.0)
        for mixture in (values, outputs):
            mixture[head] *= 1.0 - share
            mixture[head, pruned] += share
        norm = float(np.linalg.norm(values[head] @ rows))
        if norm > LARGEST_NORM * math.sqrt(geometry.head_dim):
            values[head] *= math.sqrt(geometry.head_dim) / norm
    values[list(layer.pruned)] = 0.0
    from_pruned = outputs[np.ix_(kept, list(layer.pruned))].T
    return layer.mix(np.diag(outputs)[kept], np.kron(from_pruned, np.eye(geometry.head_dim)), values)
