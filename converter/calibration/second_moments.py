"""Second moments of the input of ``o_proj``: all that compensations and data-driven saliency need of the data."""

from __future__ import annotations

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
