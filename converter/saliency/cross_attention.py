"""``cross-attention`` (S4): how much, and how unevenly, a head's text queries look at the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..calibration.stream import LayerSample
from ..errors import CalibrationError

if TYPE_CHECKING:
    import torch

ROWS = 64  # queries at a time: no more than [num_heads, ROWS, tokens] attention weights ever exist


class CrossAttention:
    """Per head: variance + *gamma* * mean of the text-to-image attention weights, averaged over samples.

    The weights of one sample are those of all pairs of a text token as query and an image token as key before it:
    what stands before the image (the system prompt) cannot look at it, and is neither question nor answer. A
    weight is what stock attention computes: a query's weights over *all* tokens sum to 1. The variance is the
    population's, E[w^2] - E[w]^2, over all those pairs of the sample; sums are in float64.
    A sample without such pairs has no score and does not count.
    """

    def __init__(self, num_heads: int, gamma: float) -> None:
        self._num_heads, self._gamma = num_heads, gamma
        self._sums = [0.0] * num_heads
        self._num_samples = 0

    def observe(self, sample: LayerSample) -> None:
        """Count in the score of *sample*."""
        import torch

        image = sample.is_image.nonzero()[:, 0]
        text = (~sample.is_image).nonzero()[:, 0]
        text = text[text > image[0]] if len(image) else text[:0]
        if not len(text):
            return
        mean, square = torch.zeros(2, self._num_heads, dtype=torch.float64, device=image.device)
        for rows in torch.split(text, ROWS):
            weights = sample.attention.weights(rows)[:, :, image].double()
            mean += weights.sum((1, 2))
            square += weights.square().sum((1, 2))
        num_pairs = _num_pairs(text, image)
        mean, square = mean / num_pairs, square / num_pairs
        score = (square - mean.square()).clamp(min=0) + self._gamma * mean
        self._sums = [total + figure for total, figure in zip(self._sums, score.tolist(), strict=True)]
        self._num_samples += 1

    def scores(self) -> tuple[float, ...]:
        """Raises CalibrationError where no sample had a score."""
        if not self._num_samples:
            raise CalibrationError(
                "cross-attention: no sample has a text token behind an image, so there is nothing to measure; "
                "give questions with images, or use another metric"
            )
        return tuple(total / self._num_samples for total in self._sums)


def _num_pairs(text: torch.Tensor, image: torch.Tensor) -> int:
    return int((image[None, :] < text[:, None]).sum())
