"""How alike the heads of a layer are: the cosine of their flattened rows of ``v_proj``."""

from __future__ import annotations

import numpy as np

from converter.checkpoint.dtypes import Float64Array
from converter.compensation.pruned_layer import PrunedLayer


def rows_by_head(layer: PrunedLayer) -> Float64Array:
    """The weight of ``v_proj``, [num_heads, head_dim * hidden_size]; only without grouped-query attention."""
    return layer.read_weight("v").reshape(layer.geometry.num_heads, -1)


def cosines(rows: Float64Array) -> Float64Array:
    """The cosines [num_heads, num_heads] of *rows* [num_heads, ...]; 0 where one of the two is zero."""
    norms = np.linalg.norm(rows, axis=1)
    products = np.outer(norms, norms)
    similar: Float64Array = np.divide(rows @ rows.T, products, out=np.zeros_like(products), where=products > 0)
    return similar
