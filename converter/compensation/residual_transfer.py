"""Residual transfer: each pruned head gives a little of itself to the kept head that is most like it.

For each pruned head p, in order, with k the kept head whose V rows have the largest cosine with p's:
beta' = beta * max(cosine, 0); V_k += beta' (V_p - V_k); if |V_k|_F > 1.5 sqrt(head_dim), V_k is rescaled to
sqrt(head_dim); O_k += beta' (O_p - O_k). Cosines are those of the original rows. A bias of V is mixed as its rows are.
One of the methods tried before least squares; kept to compare with.
"""

from __future__ import annotations

import math

import numpy as np

from converter.compensation.head_mix import HeadMix
from converter.compensation.pruned_layer import PrunedLayer
from converter.compensation.value_similarity import cosines, rows_by_head

BETA = 0.1
LARGEST_NORM = 1.5  # of V_k, in units of sqrt(head_dim)


def residual_transfer(layer: PrunedLayer) -> HeadMix:
    """The transfers of all pruned heads as one map; *values* of the result are those of V, the rest those of O."""
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
