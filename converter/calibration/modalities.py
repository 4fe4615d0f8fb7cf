"""Means over text tokens and over image tokens, mixed: 576 image tokens a sample would drown the text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from converter.compensation.moments import IMAGE_WEIGHT

if TYPE_CHECKING:
    import torch


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
