"""Compares a resident model, as it is now, with what it was, on the text positions of samples.

What an image makes the model say next is nothing that anybody reads, so the positions of images do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from ..model.batches import batches
from ..model.divergence import Divergence, compare
from ..model.output_head import OutputHead
from ..model.resident import ResidentModel
from .inputs import Inputs

if TYPE_CHECKING:
    import torch

SampleT = TypeVar("SampleT")

MOST_JUDGES = 64  # more say little more, and every check takes its time


def judging(held_out: Sequence[SampleT]) -> list[SampleT]:
    """Those of *held_out* samples that a model is judged by: at most :data:`MOST_JUDGES`, spread evenly."""
    count = min(MOST_JUDGES, len(held_out))
    return [held_out[number * len(held_out) // count] for number in range(count)]


def taught_states(model: ResidentModel, samples: Sequence[Inputs]) -> list[torch.Tensor]:
    """What the final norm makes of *samples*, for :func:`divergence` to compare with later; on the CPU."""
    return [_states(model, batch).cpu() for batch in _batches(samples)]


def divergence(
    model: ResidentModel, head: OutputHead, samples: Sequence[Inputs], taught: Sequence[torch.Tensor]
) -> Divergence:
    """How far *model* is from the one that *taught* is of, on the same *samples*."""
    pairs = zip(_batches(samples), taught, strict=True)
    return Divergence.mean([compare(head, wanted.to(model.device), _states(model, batch)) for batch, wanted in pairs])


def at_text(states: torch.Tensor, batch: Sequence[Inputs]) -> torch.Tensor:
    """Of *states* [samples, longest, hidden_size], the rows of text positions, one sample after the other."""
    import torch

    rows = [states[row, : len(one.is_image)][~one.is_image.to(states.device)] for row, one in enumerate(batch)]
    return torch.cat(rows)


def _states(model: ResidentModel, batch: Sequence[Inputs]) -> torch.Tensor:
    import torch

    with torch.no_grad():
        return at_text(model.states([sample.hidden for sample in batch]), batch)


def _batches(samples: Sequence[Inputs]) -> list[list[Inputs]]:
    together = batches([len(sample.is_image) for sample in samples])
    return [[samples[number] for number in numbers] for numbers in together]
