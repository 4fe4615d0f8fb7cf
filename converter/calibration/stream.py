"""Runs calibration inputs through the language model, one decoder layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model.batches import batches, padded
from ..model.decoder import AttentionInput, LayerDecoder, full_float32, require_stock_code, stock_code
from .inputs import Inputs
from .moments import ModalityMean

if TYPE_CHECKING:
    import torch


_SHARE_OF_MEMORY = 0.2  # of a GPU, for the residual streams of all samples


@dataclass(frozen=True)
class LayerSample:
    """Sample *number* inside one layer, on the device that computes.

    *is_image* is [tokens], *heads* the input of ``o_proj`` [1, tokens, num_heads * head_dim], *attention* the input of
    the attention kernel.
    """

    number: int
    is_image: torch.Tensor
    heads: torch.Tensor
    attention: AttentionInput


class Observer(Protocol):
    """Measures something inside one layer."""

    def observe(self, sample: LayerSample) -> None:
        """Count in *sample*."""


ObserverT = TypeVar("ObserverT", bound=Observer)


@dataclass(frozen=True)
class ObservedLayer(Generic[ObserverT]):
    """A layer after every sample went through it.

    *residual_energy* is E||h||^2 over tokens (text and image mixed) of the residual stream h that the layer reads.
    """

    layer: int
    observer: ObserverT
    residual_energy: float


def stream_layers(
    checkpoint: Checkpoint, inputs: list[Inputs], observer: Callable[[int], ObserverT], *, device: str = "cpu"
) -> Iterator[ObservedLayer[ObserverT]]:
    """Run *inputs* through *checkpoint* layer by layer; *observer* makes the observer of a layer.

    *inputs* is overwritten: each layer replaces its entries by the residual stream after the layer. A batch of them at
    a time is on *device*, or all where that is a GPU with room for them.

    Raises:
        UsageError: the installed stock code cannot run this model, or shows no attention.
        CheckpointError: weights do not fit the stock code, or hidden states are not finite.
    """
    require_stock_code(checkpoint, "a metric or a compensation that needs no calibration data")
    decoder = LayerDecoder(checkpoint, device)
    home = device if _have_room(inputs, device) else "cpu"
    together = batches([len(sample.is_image) for sample in inputs])
    for layer in decoder.load_each((checkpoint, layer) for layer in range(checkpoint.geometry.num_layers)):
        looking, energy = observer(layer), ModalityMean()
        with stock_code(), full_float32():
            for numbers in together:
                batch = {number: _on(inputs[number], device) for number in numbers}
                for sample in batch.values():
                    energy.add(sample.hidden[0].double().square().sum(-1), sample.is_image)
                for number, after in _through(decoder, batch, looking):
                    if not after.isfinite().all():
                        raise CheckpointError(
                            f"{checkpoint.path}: layer {layer}: hidden states are not finite; check its weights"
                        )
                    inputs[number] = _on(replace(batch[number], hidden=after), home)
        yield ObservedLayer(layer, looking, float(energy.mixed()))


def _have_room(inputs: list[Inputs], device: str) -> bool:
    """Whether *device* is a GPU where all of *inputs* take a part of the free memory that is not missed."""
    import torch

    if torch.device(device).type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return sum(sample.hidden.nbytes for sample in inputs) <= _SHARE_OF_MEMORY * free


def _on(sample: Inputs, device: str) -> Inputs:
    return replace(sample, hidden=sample.hidden.to(device), is_image=sample.is_image.to(device))


def _through(
    decoder: LayerDecoder, batch: Mapping[int, Inputs], observer: Observer
) -> Iterator[tuple[int, torch.Tensor]]:
    """The number of each sample, and its residual stream after the loaded layer; *observer* sees it inside."""
    import torch

    heads: list[torch.Tensor] = []
    attention: list[AttentionInput] = []

    def watch(outputs: torch.Tensor) -> torch.Tensor:
        heads.append(outputs)
        return outputs

    after = decoder.forward(padded(sample.hidden for sample in batch.values()), watch, attention.append)
    with torch.inference_mode():
        for row, (number, sample) in enumerate(batch.items()):
            tokens = len(sample.is_image)
            inside = LayerSample(
                number, sample.is_image, heads[0][row : row + 1, :tokens], attention[row].until(tokens)
            )
            observer.observe(inside)
            yield number, after[row : row + 1, :tokens].clone()
