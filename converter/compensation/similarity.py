"""Similarity: kept heads take, on top of the S4 scale N / n, a share of each pruned head as large as they are like it.

Kept head k's factor is N / n + the sum over pruned heads p of max(cosine of V_p and V_k, 0). These factors sum to more
than the N that was meant, which has destroyed a LLaVA-7B; so they are normalised to sum to N, with a warning that
names the sum. One of the methods tried before least squares; kept to compare with.
"""

from __future__ import annotations

import numpy as np

from converter.compensation.head_mix import HeadMix
from converter.compensation.pruned_layer import PrunedLayer
from converter.compensation.value_similarity import cosines, rows_by_head


def similarity(layer: PrunedLayer) -> HeadMix:
    """The normalised factors; a sum other than N is told to the layer's *warn*."""
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
