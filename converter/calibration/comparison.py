"""Judges how far a model has gone from what it was, by samples that were held out of what is done to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ..errors import CalibrationError
from ..model.batches import batches
from ..model.divergence import Compared, Divergence, compare
from ..model.output_head import OutputHead
from ..model.resident import ResidentModel
from .inputs import Inputs
from .samples import DataFile

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
    """How far a model is from another on all samples, and on those of each file."""

    of_all: Divergence
    by_file: Mapping[DataFile | None, Divergence]

    def worse_than(self, other: Judgement) -> tuple[str, ...]:
        """The files on which it is further than *other* is."""
        worse = (file for file, found in self.by_file.items() if not found.kl <= other.by_file[file].kl)
        return tuple("the samples" if file is None else file.name for file in worse)


class Judges:
    """*samples* that compare *model* with what it is now: at the answers of questions, and everywhere in plain text.

    Raises:
        CalibrationError: there is no such place, because all answers were cut off.
    """

    def __init__(self, model: ResidentModel, head: OutputHead, samples: Sequence[Inputs]) -> None:
        places = [sample.places("answers").nonzero()[:, 0] for sample in samples]
        self._model, self._head = model, head
        self._samples = [(one, where) for one, where in zip(samples, places, strict=True) if len(where)]
        if not self._samples:
            raise CalibrationError("every held-out sample was cut off before its answers; give shorter ones")
        self._taught = {number: states.cpu() for number, states in self._states()}

    def __len__(self) -> int:
        return len(self._samples)

    def judge(self) -> Judgement:
        """The model as it is now."""
        compared: dict[DataFile | None, list[Compared]] = {}
        for number, states in self._states():
            wanted = self._taught[number].to(states.device)
            compared.setdefault(self._samples[number][0].file, []).append(compare(self._head, wanted, states))
        by_file = {file: Divergence.mean(of_file) for file, of_file in compared.items()}
        return Judgement(Divergence.mean([one for of_file in compared.values() for one in of_file]), by_file)

    def _states(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Of every sample, its number and what goes into ``lm_head`` at its places, [places, hidden_size]."""
        import torch

        for numbers in batches([len(sample.is_image) for sample, _ in self._samples]):
            with torch.no_grad():
                states = self._model.states([self._samples[number][0].hidden for number in numbers])
            for row, number in enumerate(numbers):
                yield number, states[row, self._samples[number][1].to(states.device)]
