"""Runs calibration inputs through the language model, one decoder layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model.decoder import AttentionInput, LayerDecoder, full_float32, require_stock_code, stock_code
from .inputs import Inputs
from .moments import ModalityMean

if TYPE_CHECKING:
    import torch


_SHARE_OF_MEMORY = 0.2  # of a GPU, for the residual streams of all samples


@dataclass(frozen=True)
class LayerSample:
    """One sample inside one layer, on the device that computes.

    *is_image* is [tokens], *heads* the input of ``o_proj`` [1, tokens, num_heads * head_dim], *attention* the input of
    the attention kernel.
    """

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

    *inputs* is overwritten: each layer replaces its entries by the residual stream after the layer. One sample at a
    time is on *device*, or all where that is a GPU with room for them.

    Raises:
        UsageError: the installed stock code cannot run this model, or shows no attention.
        CheckpointError: weights do not fit the stock code, or hidden states are not finite.
    """
    require_stock_code(checkpoint, "a metric or a compensation that needs no calibration data")
    decoder = LayerDecoder(checkpoint, device)
    home = device if _have_room(inputs, device) else "cpu"
    for layer in decoder.load_each((checkpoint, layer) for layer in range(checkpoint.geometry.num_layers)):
        looking, energy = observer(layer), ModalityMean()
        with stock_code(), full_float32():
            for number, sample in enumerate(inputs):
                hidden, is_image = sample.hidden.to(device), sample.is_image.to(device)
                energy.add(hidden[0].double().square().sum(-1), is_image)
                after = _through(decoder, hidden, is_image, looking)
                if not after.isfinite().all():
                    raise CheckpointError(
                        f"{checkpoint.path}: layer {layer}: hidden states are not finite; check its weights"
                    )
                inputs[number] = replace(sample, hidden=after.to(home), is_image=is_image.to(home))
        yield ObservedLayer(layer, looking, float(energy.mixed()))


def _have_room(inputs: list[Inputs], device: str) -> bool:
    """Whether *device* is a GPU where all of *inputs* take a part of the free memory that is not missed."""
    import torch

    if torch.device(device).type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return sum(sample.hidden.nbytes for sample in inputs) <= _SHARE_OF_MEMORY * free


def _through(decoder: LayerDecoder, hidden: torch.Tensor, is_image: torch.Tensor, observer: Observer) -> torch.Tensor:
    """The residual stream after the loaded layer; *observer* sees the sample inside it."""
    import torch

    heads: list[torch.Tensor] = []
    attention: list[AttentionInput] = []

    def watch(outputs: torch.Tensor) -> torch.Tensor:
        heads.append(outputs)
        return outputs

    after = decoder.forward(hidden, watch, attention.append)
    with torch.inference_mode():
        observer.observe(LayerSample(is_image, heads[0], attention[0]))
    return after
