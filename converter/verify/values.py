"""The original's ``v_proj`` as a compensation that mixes the heads' values makes it, before any rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from converter.checkpoint import Checkpoint, StoredTensor
from converter.checkpoint.dtypes import Float32Array
from converter.compensation import HeadMix


@dataclass(frozen=True)
class _MixedCheckpoint(Checkpoint):
    """A checkpoint of which the tensors in *mixed* hold other values; they are in float32."""

    mixed: Mapping[str, Float32Array]

    def read_rows(self, tensor: StoredTensor, first: int = 0, count: int | None = None) -> Float32Array:
        if tensor.name not in self.mixed:
            return super().read_rows(tensor, first, count)
        return self.mixed[tensor.name][first : None if count is None else first + count]


def with_mixed_values(original: Checkpoint, layer: int, mix: HeadMix) -> Checkpoint:
    """*original* with the rows of *layer*'s ``v_proj``, weight and bias, that *mix* changes; nothing is written.

    Multiplying values by a matrix over the heads before the attention is the same as doing so to their rows: this is
    what a hook on the output of ``v_proj`` would compute.

    Raises:
        StorageError: the weights cannot be read.
    """
    mixed: dict[str, Float32Array] = {}
    for kind in ("weight", "bias"):
        rows = original.projection(layer, "v", kind)
        if rows is None:
            continue
        values = np.array(mixed.get(rows.tensor.name, original.read_rows(rows.tensor)))
        part = slice(rows.first, rows.first + rows.count)
        values[part] = mix.apply_to_values(values[part])
        mixed[rows.tensor.name] = values
    inherited = {field.name: getattr(original, field.name) for field in fields(Checkpoint)}
    return _MixedCheckpoint(**inherited, mixed=mixed)
