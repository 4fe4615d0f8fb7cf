"""Which heads of a checkpoint are silent already: their ``o_proj`` columns are all zero."""

from __future__ import annotations

import numpy as np

from .checkpoint import Checkpoint

PROBE_ROWS = 16  # a head that is silent in all rows is silent in these; few trained heads are
BLOCK_BYTES = 4 << 20


def silent_heads(checkpoint: Checkpoint, layer: int) -> tuple[int, ...]:
    """The heads of *layer* whose ``o_proj`` columns are zero in every row, sorted.

    Raises:
        StorageError: the weights cannot be read.
    """
    output = checkpoint.output_projection(layer)
    geometry = checkpoint.geometry
    silent = np.ones(geometry.num_heads, dtype=bool)
    first, count = 0, PROBE_ROWS
    while first < output.shape[0] and silent.any():
        rows = checkpoint.read_rows(output, first, min(count, output.shape[0] - first))
        silent &= ~rows.reshape(len(rows), geometry.num_heads, geometry.head_dim).any(axis=(0, 2))
        first += len(rows)
        count = max(1, BLOCK_BYTES // output.row_bytes)
    return tuple(int(head) for head in np.flatnonzero(silent))
