"""A short name for the weights of a language model, so that what was measured on one is not taken for another's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .tensors import StoredTensor

SAMPLED_ROWS = 8  # of every tensor, spread evenly, the first and the last among them
SAMPLED_BYTES = 4096  # of every sampled row, at most


def fingerprint(checkpoint: Checkpoint) -> str:
    """The first 32 digits of a sha256 over the decoder layers and the token embeddings of *checkpoint*.

    Of every tensor it takes the name inside its layer, the dtype, the shape and the bytes of :data:`SAMPLED_ROWS` rows:
    19 MB at the size of a 7B model. So a copy, a snapshot of the Hub, other shards and ``.bin`` files of the same
    weights have the same fingerprint, and where training went on it is another. A change of other rows alone is not
    seen.

    Raises:
        StorageError: a file cannot be read.
    """
    digest = hashlib.sha256()
    tensors = [("embedding", checkpoint.embedding)]
    for number, layer in enumerate(checkpoint.layers):
        tensors += [(f"{number}.{name}", layer[name]) for name in sorted(layer)]
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        for row in _sampled_rows(tensor):
            digest.update(checkpoint.read_bytes(tensor, row, 1)[:SAMPLED_BYTES])
    return digest.hexdigest()[:32]


def _sampled_rows(tensor: StoredTensor) -> list[int]:
    last = tensor.num_rows - 1
    return sorted({last * number // (SAMPLED_ROWS - 1) for number in range(SAMPLED_ROWS)}) if last >= 0 else []
