"""Judges how far a model has gone from what it was, by samples that were held out of what is done to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..model.batches import batches
from ..model.divergence import Compared, Divergence, compare
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


@dataclass(frozen=True)
class Judgement:
    """How far a model is from another on all text of samples, and the same on *parts* of it, by their names."""

    of_all: Divergence
    parts: Mapping[str, Divergence]

    def worse_than(self, other: Judgement) -> tuple[str, ...]:
        """The parts on which *other* is nearer."""
        return tuple(name for name, found in self.parts.items() if other.parts[name].is_nearer(found))


class Judges:
    """*samples* that compare *model* with what it is now: on their text, file by file, and at the answers of each."""

    def __init__(self, model: ResidentModel, head: OutputHead, samples: Sequence[Inputs]) -> None:
        self._model, self._head, self._samples = model, head, samples
        self._taught = {number: states.cpu() for number, states in self._states()}

    def judge(self) -> Judgement:
        """The model as it is now."""
        compared: list[Compared] = []
        parts: dict[str, list[Compared]] = {}
        for number, states in self._states():
            sample, wanted = self._samples[number], self._taught[number].to(states.device)
            name = "the samples" if sample.file is None else sample.file.name
            compared.append(compare(self._head, wanted, states))
            parts.setdefault(name, []).append(compared[-1])
            at = sample.answered.to(states.device)
            if bool(at.any()):
                parts.setdefault(f"the answers of {name}", []).append(compare(self._head, wanted[at], states[at]))
        return Judgement(Divergence.mean(compared), {name: Divergence.mean(part) for name, part in parts.items()})

    def _states(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Of every sample, its number and what goes into ``lm_head`` at its text, [places, hidden_size]."""
        import torch

        for numbers in batches([len(sample.is_image) for sample in self._samples]):
            batch = [self._samples[number] for number in numbers]
            with torch.no_grad():
                states = self._model.states([sample.hidden for sample in batch])
            for number, sample, of_sample in zip(numbers, batch, states, strict=True):
                places = sample.places("all").to(states.device)
                yield number, of_sample[: len(places)][places]
