"""Runs calibration inputs through the language model, one decoder layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model.attention import AttentionInput
from ..model.batches import batches, padded
from ..model.decoder import LayerDecoder, full_float32, require_stock_code, stock_code
from .inputs import Inputs, modalities
from .moments import ModalityMean

if TYPE_CHECKING:
    import torch


_SHARE_OF_MEMORY = 0.2  # of a GPU, for the residual streams of all samples


@dataclass(frozen=True)
class LayerBatch:
    """The samples *numbers*, of *lengths* tokens, inside one layer, on the device that computes.

    Their tokens stand one sample after the other: *is_image* is [tokens], *heads* the input of ``o_proj`` [tokens,
    num_heads * head_dim]. *attention* is the input of the attention kernel of each sample.
    """

    numbers: tuple[int, ...]
    lengths: tuple[int, ...]
    is_image: torch.Tensor
    heads: torch.Tensor
    attention: tuple[AttentionInput, ...]

    def of(self, places: Sequence[int]) -> LayerBatch:
        """Of its samples, those at *places*."""
        import torch

        chosen = torch.zeros(len(self.numbers), dtype=torch.bool)
        chosen[list(places)] = True
        tokens = chosen.repeat_interleave(torch.tensor(self.lengths)).to(self.is_image.device)
        return LayerBatch(
            tuple(self.numbers[place] for place in places),
            tuple(self.lengths[place] for place in places),
            self.is_image[tokens],
            self.heads[tokens],
            tuple(self.attention[place] for place in places),
        )


class Observer(Protocol):
    """Measures something inside one layer."""

    def observe(self, batch: LayerBatch) -> None:
        """Count in the samples of *batch*."""


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
    import torch

    require_stock_code(checkpoint, "a metric or a compensation that needs no calibration data")
    decoder = LayerDecoder(checkpoint, device)
    home = device if _have_room(inputs, device) else "cpu"
    together = batches([len(sample.is_image) for sample in inputs])
    for layer in decoder.load_each((checkpoint, layer) for layer in range(checkpoint.geometry.num_layers)):
        looking, energy = observer(layer), ModalityMean()
        with stock_code(), full_float32():
            for numbers in together:
                batch = [_on(inputs[number], device) for number in numbers]
                is_image, inside = modalities(batch, device)
                hidden = padded(sample.hidden for sample in batch)
                energy.add(hidden[inside].double().square().sum(-1), is_image)
                after, heads, attention = _through(decoder, hidden)
                if not after[inside].isfinite().all():
                    raise CheckpointError(
                        f"{checkpoint.path}: layer {layer}: hidden states are not finite; check its weights"
                    )
                lengths = tuple(len(sample.is_image) for sample in batch)
                with torch.inference_mode():
                    own = tuple(one.until(tokens) for one, tokens in zip(attention, lengths, strict=True))
                    looking.observe(LayerBatch(tuple(numbers), lengths, is_image, heads[inside], own))
                    for number, sample, stream in zip(numbers, batch, after, strict=True):
                        own_stream = stream[None, : len(sample.is_image)].clone()
                        inputs[number] = _on(replace(sample, hidden=own_stream), home)
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


def _through(decoder: LayerDecoder, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[AttentionInput]]:
    """(the residual stream after the loaded layer, the input of its ``o_proj``, that of its attention kernel)."""
    heads: list[torch.Tensor] = []
    attention: list[AttentionInput] = []

    def watch(outputs: torch.Tensor) -> torch.Tensor:
        heads.append(outputs)
        return outputs

    return decoder.forward(hidden, watch, attention.append), heads[0], attention
