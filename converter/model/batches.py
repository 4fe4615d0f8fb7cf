"""Samples go through a model together, padded on the right, where causal attention never looks: so there is no mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BATCH_TOKENS = 2560  # of a batch, its padding among them


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """The numbers of samples of *lengths* tokens, in batches of at most :data:`BATCH_TOKENS`; a longer one goes alone.

    The longest come first, so that a sample for which memory is short is met at once.
    """
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        if not found or (len(found[-1]) + 1) * lengths[found[-1][0]] > BATCH_TOKENS:
            found.append([])
        found[-1].append(number)
    return found


def padded(samples: Iterable[torch.Tensor]) -> torch.Tensor:
    """*samples* [1, tokens, width] as one batch [samples, longest, width], with zeros behind their ends."""
    from torch.nn.utils.rnn import pad_sequence

    return pad_sequence([sample[0] for sample in samples], batch_first=True)
