"""What stands behind the last decoder layer: the stock final norm, and ``lm_head``, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..checkpoint import Checkpoint
from ..checkpoint.torch_file import torch_dtype
from .decoder import fitting, meta_model
from .loading import load_tensor, row_reader

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 64 << 20  # of lm_head's rows in float32 at a time


class OutputHead:
    """The final norm and ``lm_head`` of *checkpoint* on *device*.

    ``lm_head`` stays in its stored dtype there, and a block of its rows at a time becomes float32, so that a large
    vocabulary takes little memory.

    Raises:
        CheckpointError: the weights do not fit the stock class, or are in a dtype that cannot be computed with.
        StorageError: they cannot be read.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        import torch

        self._norm: Any = meta_model(checkpoint).norm.to_empty(device=device)
        parameter, read = self._norm.weight, row_reader(checkpoint, device)
        load_tensor(parameter, fitting(checkpoint, checkpoint.final_norm, parameter, "the final norm"), read)
        projection, width = checkpoint.vocabulary_projection, checkpoint.geometry.hidden_size
        checkpoint.check_computable(projection)
        self._weight = torch.empty(projection.num_rows, width, dtype=torch_dtype(projection.dtype), device=device)
        load_tensor(self._weight, fitting(checkpoint, projection, self._weight, "lm_head"), read)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """*hidden* [tokens, hidden_size], the residual stream behind the last layer, after the final norm."""
        normed: torch.Tensor = self._norm(hidden)
        return normed

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """What ``lm_head`` makes of *normed* [tokens, hidden_size]: [tokens, vocabulary]."""
        import torch

        logits = torch.empty(len(normed), len(self._weight), device=normed.device)
        for rows in self._blocks():
            logits[:, rows] = normed @ self._weight[rows].float().T
        return logits

    def pull_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient of *normed* [tokens, hidden_size], given that of the logits [tokens, vocabulary]."""
        total = gradient.new_zeros(len(gradient), self._weight.shape[1])
        for rows in self._blocks():
            total.addmm_(gradient[:, rows], self._weight[rows].float())
        return total

    def _blocks(self) -> list[slice]:
        step = max(1, _BLOCK_BYTES // (4 * self._weight.shape[1]))
        return [slice(first, first + step) for first in range(0, len(self._weight), step)]
