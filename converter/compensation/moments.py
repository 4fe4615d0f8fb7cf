"""The statistics that every data-driven compensation comes from: moments of a layer's concatenated head outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from converter.checkpoint.dtypes import Float64Array
from converter.errors import CompensationError

IMAGE_WEIGHT = 0.5  # the share of the image tokens in mixed moments, however many they are


@dataclass(frozen=True, eq=False)
class Moments:
    """Of the inputs x [columns] of a layer's ``o_proj``, over *num_tokens* tokens.

    *second* [columns, columns] is E[x x^T], *mean* [columns] is E[x]. Large products with them are taken on *device*,
    as torch names it.
    """

    second: Float64Array
    mean: Float64Array
    num_tokens: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        columns = len(self.mean)
        if self.second.shape != (columns, columns):
            raise CompensationError(
                f"moments: the second one has shape {list(self.second.shape)}, but the mean {columns} entries"
            )
        if self.second.dtype != np.float64 or self.mean.dtype != np.float64:
            raise CompensationError("moments: are not float64, in which alone they are precise enough to solve with")
        if self.num_tokens < 1:
            raise CompensationError("moments: are those of no token at all; calibrate with more data")
        if not np.isfinite(self.second).all() or not np.isfinite(self.mean).all():
            raise CompensationError("moments: hold NaN or infinity; check the checkpoint and the calibration data")

    @staticmethod
    def of(inputs: Float64Array) -> Moments:
        """The moments of *inputs* [tokens, columns]."""
        inputs = np.asarray(inputs, np.float64)
        return Moments(inputs.T @ inputs / len(inputs), inputs.mean(axis=0), len(inputs))


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """The moments of one layer: *train* to fit with, *held_out* of other tokens to judge a fit by, or None."""

    train: Moments
    held_out: Moments | None = None


def mix_moments(text: Moments | None, image: Moments | None, *, image_weight: float = IMAGE_WEIGHT) -> Moments:
    """The moments as if a share *image_weight* of all tokens were image tokens.

    A sample has some 576 image tokens and far fewer text tokens, which would drown among them; so the two are kept
    apart, and by default each counts half. Where there is only one kind, it counts alone.

    Raises:
        CompensationError: neither is given, or the weight is not from 0 to 1.
    """
    if not 0.0 <= image_weight <= 1.0:
        raise CompensationError(f"image weight {image_weight} is not a share from 0 to 1")
    if text is None or image is None:
        moments = image if text is None else text
        if moments is None:
            raise CompensationError("moments: neither of text nor of image tokens; calibrate with more data")
        return moments
    return Moments(
        (1 - image_weight) * text.second + image_weight * image.second,
        (1 - image_weight) * text.mean + image_weight * image.mean,
        text.num_tokens + image.num_tokens,
        text.device,
    )
