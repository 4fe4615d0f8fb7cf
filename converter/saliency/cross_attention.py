"""``cross-attention`` (S4): how much, and how unevenly, a head's text tokens attend to the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..calibration.stream import LayerBatch
from ..errors import CalibrationError
from ..model.attention import AttentionInput

if TYPE_CHECKING:
    import torch

ROWS = 64  # queries at a time: no more than [num_heads, ROWS, tokens] attention weights ever exist


class CrossAttention:
    """Per head: variance + *gamma* * mean of the text-to-image attention weights, averaged over samples.

    A sample's weights w are those of all pairs of a text token (query) and an image token (key) before it, as stock
    attention computes them: the weights of a query over *all* tokens sum to 1. The variance is E[w^2] - E[w]^2, in
    float64. A sample without such pairs has no score and does not count.
    """

    def __init__(self, num_heads: int, gamma: float) -> None:
        self._num_heads, self._gamma = num_heads, gamma
        self._sums = [0.0] * num_heads
        self._num_samples = 0

    def observe(self, batch: LayerBatch) -> None:
        import torch

        for is_image, attention in zip(torch.split(batch.is_image, list(batch.lengths)), batch.attention, strict=True):
            self._observe(is_image, attention)

    def _observe(self, is_image: torch.Tensor, attention: AttentionInput) -> None:
        import torch

        image = is_image.nonzero()[:, 0]
        text = (~is_image).nonzero()[:, 0]
        text = text[text > image[0]] if len(image) else text[:0]
        if not len(text):
            return
        mean, square = torch.zeros(2, self._num_heads, dtype=torch.float64, device=image.device)
        for rows in torch.split(text, ROWS):
            weights = attention.weights(rows)[:, :, image].double()
            mean += weights.sum((1, 2))
            square += weights.square().sum((1, 2))
        num_pairs = int((image[None, :] < text[:, None]).sum())
        mean, square = mean / num_pairs, square / num_pairs
        score = (square - mean.square()).clamp(min=0) + self._gamma * mean
        self._sums = [total + figure for total, figure in zip(self._sums, score.tolist(), strict=True)]
        self._num_samples += 1

    def scores(self) -> tuple[float, ...]:
        """The scores [num_heads]; CalibrationError where no sample has one."""
        if not self._num_samples:
            raise CalibrationError(
                "cross-attention: no sample has a text token behind an image, so there is nothing to measure; "
                "give questions with images, or use another metric"
            )
        return tuple(total / self._num_samples for total in self._sums)
