"""Compensations that multiply each kept head by a factor: none, the S4 scale, and the two least-squares fits of it."""

from __future__ import annotations

import numpy as np

from ..calibration.moments import Moments
from .error import best_uniform_factor, head_gram
from .head_mix import HeadMix
from .pruned_layer import PrunedLayer


def none(layer: PrunedLayer) -> HeadMix:
    """Kept heads stay as they are."""
    return layer.mix(1.0)


def scale(layer: PrunedLayer) -> HeadMix:
    """N / n, all heads over kept heads (S4); the mask's own ``scale`` for the layer comes first."""
    return layer.mix(layer.geometry.num_heads / len(layer.kept) if layer.scale is None else layer.scale)


def uniform_least_squares(layer: PrunedLayer, moments: Moments) -> HeadMix:
    """One factor for all kept heads, c* of :func:`~s4convert.compensation.error.best_uniform_factor`."""
    return layer.mix(best_uniform_factor(head_gram(layer.weight_gram, moments, layer.geometry.head_dim), layer))


def head_least_squares(layer: PrunedLayer, moments: Moments) -> HeadMix:
    """A factor for each kept head: c = 1 + G_KK^-1 G_KP 1, with the head Gram G.

    Where heads depend on each other, or are silent, there are many best factors; these are the ones nearest to 1.
    """
    gram = head_gram(layer.weight_gram, moments, layer.geometry.head_dim)
    kept, pruned = list(layer.kept), list(layer.pruned)
    towards_pruned = gram[np.ix_(kept, pruned)].sum(axis=1)
    change, *_ = np.linalg.lstsq(gram[np.ix_(kept, kept)], towards_pruned, rcond=None)
    return layer.mix(1.0 + change)
