"""Moments of the input of a layer's ``o_proj``, the concatenated head outputs, for fits and for scores.

Text and image tokens are summed separately and mixed afterwards, by default with equal weights: a sample has some 576
image tokens and far fewer text tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ..checkpoint.dtypes import Float64Array
from ..choices import IMAGE_WEIGHT
from ..errors import CompensationError

if TYPE_CHECKING:
    import torch

    from .stream import LayerBatch


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of the inputs x [columns] of a layer's ``o_proj``, over *num_tokens* tokens.

    *tensor* [columns, columns] is E[x x^T], in float64 on the device that computes with it (an array of numpy is taken,
    too), *mean* [columns] is E[x].
    """

    tensor: torch.Tensor
    mean: Float64Array
    num_tokens: int

    def __post_init__(self) -> None:
        import torch

        if isinstance(self.tensor, np.ndarray):
            object.__setattr__(self, "tensor", torch.from_numpy(self.tensor))
        columns = len(self.mean)
        if self.tensor.shape != (columns, columns):
            raise CompensationError(
                f"moments: the second one has shape {list(self.tensor.shape)}, but the mean {columns} entries"
            )
        if self.tensor.dtype != torch.float64 or self.mean.dtype != np.float64:
            raise CompensationError("moments: are not float64, in which alone they are precise enough to solve with")
        if self.num_tokens < 1:
            raise CompensationError("moments: are those of no token at all; calibrate with more data")
        if not self.tensor.isfinite().all() or not np.isfinite(self.mean).all():
            raise CompensationError("moments: hold NaN or infinity; check the checkpoint and the calibration data")

    @property
    def device(self) -> torch.device:
        """Where large products with them run."""
        return self.tensor.device

    @property
    def second(self) -> Float64Array:
        """:attr:`tensor` as an array of numpy, which is a copy where that is on a GPU."""
        array: Float64Array = self.tensor.cpu().numpy()
        return array

    @staticmethod
    def of(inputs: Float64Array) -> Moments:
        """The moments of *inputs* [tokens, columns]."""
        import torch

        inputs = np.asarray(inputs, np.float64)
        return Moments(torch.from_numpy(inputs.T @ inputs / len(inputs)), inputs.mean(axis=0), len(inputs))


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """The moments of one layer: *train* to fit, and *held_out* (or None) of other samples to judge the fit."""

    train: Moments
    held_out: Moments | None = None


def mix_moments(text: Moments | None, image: Moments | None, *, image_weight: float = IMAGE_WEIGHT) -> Moments:
    """The moments as if a share *image_weight* of all tokens were image tokens; where one is None, the other.

    Raises:
        CompensationError: both are None, or the weight is not from 0 to 1.
    """
    if not 0.0 <= image_weight <= 1.0:
        raise CompensationError(f"image weight {image_weight} is not a share from 0 to 1")
    if text is None or image is None:
        moments = image if text is None else text
        if moments is None:
            raise CompensationError("moments: neither of text nor of image tokens; calibrate with more data")
        return moments
    return Moments(
        (1 - image_weight) * text.tensor + image_weight * image.tensor,
        (1 - image_weight) * text.mean + image_weight * image.mean,
        text.num_tokens + image.num_tokens,
    )


class ModalityMean:
    """The mean of a value per token, over the text tokens and over the image tokens; in float64."""

    def __init__(self) -> None:
        self._sums: dict[bool, torch.Tensor] = {}
        self._counts = {False: 0, True: 0}

    def add(
        self,
        values: torch.Tensor,
        is_image: torch.Tensor,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda tokens: tokens.sum(0),
    ) -> None:
        """Count in the tokens of *values* [tokens, ...]; *total* is what the tokens of one modality add."""
        for image in (False, True):
            tokens = values[is_image == image].double()
            if not len(tokens):
                continue
            if image in self._sums:
                self._sums[image] += total(tokens)
            else:
                self._sums[image] = total(tokens)
            self._counts[image] += len(tokens)

    def count(self, *, image: bool) -> int:
        """The number of image tokens, or of text tokens."""
        return self._counts[image]

    def mean(self, *, image: bool) -> torch.Tensor | None:
        """The mean over the image tokens, or over the text tokens; None where there are none."""
        return self._sums[image] / self._counts[image] if image in self._sums else None

    def take(self, *, image: bool) -> torch.Tensor | None:
        """As :meth:`mean`, but of what was counted nothing is left, which saves a copy."""
        import torch

        total = self._sums.pop(image, None)
        with torch.inference_mode():  # as the sums were made
            return None if total is None else total.div_(self._counts[image])

    def mixed(self) -> torch.Tensor:
        """The two means, mixed by :data:`IMAGE_WEIGHT`; where there is only one, that one."""
        text, image = self.mean(image=False), self.mean(image=True)
        if text is not None and image is not None:
            return text.mul_(1 - IMAGE_WEIGHT).add_(image, alpha=IMAGE_WEIGHT)
        only = image if text is None else text
        if only is None:
            raise ValueError("no tokens were counted in")
        return only


class FirstMoments(ModalityMean):
    """E[x] [num_heads * head_dim] of the head outputs x of a layer."""

    def observe(self, batch: LayerBatch) -> None:
        self.add(batch.heads, batch.is_image)


class SecondMoments(ModalityMean):
    """E[x x^T] [num_heads * head_dim, num_heads * head_dim] of the head outputs x of a layer, 134 MB each at 7B."""

    def observe(self, batch: LayerBatch) -> None:
        self.add(batch.heads, batch.is_image, lambda outputs: outputs.T @ outputs)


MODALITIES = {"text": False, "image": True}
# Of a layer, by part of the samples (train, held_out) and modality; None where there were no such tokens.
PartedMoments: TypeAlias = "Mapping[str, Mapping[str, Moments | None]]"


class SplitMoments:
    """The moments of a layer over two parts of the samples; *held_out* says for each sample whether it is held out."""

    def __init__(self, held_out: Sequence[bool]) -> None:
        self._held_out = list(held_out)
        self._parts = {name: (FirstMoments(), SecondMoments()) for name in ("train", "held_out")}

    def observe(self, batch: LayerBatch) -> None:
        for name, held_out in (("train", False), ("held_out", True)):
            places = [place for place, number in enumerate(batch.numbers) if self._held_out[number] is held_out]
            if places:
                part = batch.of(places)
                for moments in self._parts[name]:
                    moments.observe(part)

    def take(self) -> PartedMoments:
        """What was seen, by part and modality; nothing is left of it here.

        Of a second moment, the lower triangle stands on both sides, as it does in what is kept on the disk.
        """
        return {
            part: {modality: self._taken(*moments, image=image) for modality, image in MODALITIES.items()}
            for part, moments in self._parts.items()
        }

    @staticmethod
    def _taken(first: FirstMoments, second: SecondMoments, *, image: bool) -> Moments | None:
        import torch

        count, mean, square = second.count(image=image), first.take(image=image), second.take(image=image)
        if mean is None or square is None:
            return None
        with torch.inference_mode():  # as the sums were made
            square.tril_()
            square += square.tril(-1).T
        return Moments(square, mean.cpu().numpy(), count)
