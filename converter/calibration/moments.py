"""Moments of a layer's concatenated head outputs, the input of ``o_proj``: what every fit and data-driven score needs.

Text and image tokens are summed apart and mixed afterwards: the 576 image tokens of a sample would drown its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoint.dtypes import Float64Array
from ..choices import IMAGE_WEIGHT
from ..errors import CompensationError

if TYPE_CHECKING:
    import torch

    from .stream import LayerSample


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


class ModalityMean:
    """The mean of something per token, text and image tokens apart. Sums are in float64."""

    def __init__(self) -> None:
        self._sums: dict[bool, torch.Tensor] = {}
        self._counts = {False: 0, True: 0}

    def add(self, total: torch.Tensor, count: int, *, image: bool) -> None:
        """Count in *count* tokens of one modality, over which the sum is *total* (float64)."""
        if not count:
            return
        if image in self._sums:
            self._sums[image] += total
        else:
            self._sums[image] = total.clone()
        self._counts[image] += count

    def count(self, *, image: bool) -> int:
        """The tokens of one modality that were counted in."""
        return self._counts[image]

    def mean(self, *, image: bool) -> torch.Tensor | None:
        """The mean over one modality, or None where it has no tokens."""
        return self._sums[image] / self._counts[image] if image in self._sums else None

    def mixed(self, image_weight: float = IMAGE_WEIGHT) -> torch.Tensor:
        """(1 - image_weight) of the mean over text plus image_weight of that over images; all of the only one."""
        text, image = self.mean(image=False), self.mean(image=True)
        if text is None or image is None:
            only = image if text is None else text
            if only is None:
                raise ValueError("no tokens were counted in")
            return only
        return text.mul_(1 - image_weight).add_(image, alpha=image_weight)


class SecondMoments(ModalityMean):
    """S = E[x x^T] [num_heads * head_dim, num_heads * head_dim] for x the heads' outputs, as the mean of a layer.

    Products are taken and added in float64: one S per modality that has tokens, 134 MB each at 7B.
    """

    def observe(self, sample: LayerSample) -> None:
        """Count in every token of *sample*."""
        for image in (False, True):
            outputs: torch.Tensor = sample.heads[0][sample.is_image == image].double()
            self.add(outputs.T @ outputs, len(outputs), image=image)


class FirstMoments(ModalityMean):
    """mu = E[x] [num_heads * head_dim] for x the heads' outputs, as the mean of a layer."""

    def observe(self, sample: LayerSample) -> None:
        """Count in every token of *sample*."""
        for image in (False, True):
            outputs: torch.Tensor = sample.heads[0][sample.is_image == image].double()
            self.add(outputs.sum(0), len(outputs), image=image)


class SplitMoments:
    """The moments of a layer over two parts of the samples: to fit with, and held out to judge the fit by."""

    def __init__(self, held_out: Sequence[bool]) -> None:
        """*held_out* says of every sample, in the order in which they are streamed, which part it belongs to."""
        self._held_out = list(held_out)
        self._num_seen = 0
        self.parts = {name: (FirstMoments(), SecondMoments()) for name in ("train", "held_out")}

    def observe(self, sample: LayerSample) -> None:
        """Count in every token of *sample*."""
        for moments in self.parts["held_out" if self._held_out[self._num_seen] else "train"]:
            moments.observe(sample)
        self._num_seen += 1
