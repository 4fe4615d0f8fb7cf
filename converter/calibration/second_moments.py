"""Moments of the input of ``o_proj``: all that compensations and data-driven saliency need of the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from converter.calibration.modalities import ModalityMean

if TYPE_CHECKING:
    import torch

    from converter.calibration.stream import LayerSample


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
