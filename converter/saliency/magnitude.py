"""``magnitude``: how large a head's map from the residual stream to itself is, with no data."""

from __future__ import annotations

import numpy as np

from converter.calibration.stream import LayerSample
from converter.checkpoint import Checkpoint


class Magnitude:
    """The Frobenius norm of O_h V_h, the product of a head's ``o_proj`` columns and its value rows; no biases.

    It is the root of tr((O^T O)(V V^T)), in float64, so that O_h V_h [hidden_size, hidden_size] is never built.
    """

    def __init__(self, checkpoint: Checkpoint, layer: int) -> None:
        self._checkpoint, self._layer = checkpoint, layer

    def observe(self, sample: LayerSample) -> None:
        """Looks at nothing."""

    def scores(self) -> tuple[float, ...]:
        checkpoint, geometry = self._checkpoint, self._checkpoint.geometry
        value = checkpoint.projection(self._layer, "v", "weight")
        assert value is not None  # Checkpoint.open refuses a layer without it
        values = checkpoint.read_rows(value.tensor, value.first, value.count).astype(np.float64)
        values = values.reshape(geometry.num_kv_heads, geometry.head_dim, -1)
        outputs = checkpoint.read_rows(checkpoint.output_projection(self._layer)).astype(np.float64)
        outputs = outputs.reshape(-1, geometry.num_heads, geometry.head_dim)
        scores = []
        for head in range(geometry.num_heads):
            columns, rows = outputs[:, head], values[head // geometry.heads_per_group]
            scores.append(float(np.sqrt(max(0.0, float(((columns.T @ columns) * (rows @ rows.T)).sum())))))
        return tuple(scores)
