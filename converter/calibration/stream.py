"""Streams calibration inputs through the language model, one decoder layer in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..model.decoder import AttentionInput, LayerDecoder, full_float32, require_stock_code, stock_code
from .inputs import Inputs
from .moments import ModalityMean

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LayerSample:
    """One sample inside one layer, on the device that computes.

    *is_image* [tokens]; *heads*, the input of ``o_proj`` [1, tokens, num_heads * head_dim]; *attention*, what the
    attention kernel was given.
    """

    is_image: torch.Tensor
    heads: torch.Tensor
    attention: AttentionInput


class Observer(Protocol):
    """What looks at every sample inside one layer."""

    def observe(self, sample: LayerSample) -> None: ...


ObserverT = TypeVar("ObserverT", bound=Observer)


@dataclass(frozen=True)
class ObservedLayer(Generic[ObserverT]):
    """A layer that every sample went through.

    *residual_energy* is E||h||^2 of the residual stream h [hidden_size] that the layer reads, and that its
    attention's output is added to; over tokens, text and image mixed as everywhere.
    """

    layer: int
    observer: ObserverT
    residual_energy: float


def stream_layers(
    checkpoint: Checkpoint, inputs: list[Inputs], observer: Callable[[int], ObserverT], *, device: str = "cpu"
) -> Iterator[ObservedLayer[ObserverT]]:
    """Run *inputs* through every layer of *checkpoint*; each layer gets an *observer* of its own, and is yielded.

    *inputs* is taken over: its entries are replaced by the residual stream behind each layer, so that no second
    copy of it is kept. One sample at a time is on *device*.

    Raises:
        UsageError: the installed stock code cannot run this model, or shows no attention.
        CheckpointError: weights do not fit the stock code, or hidden states are not finite.
    """
    require_stock_code(checkpoint, "a metric that needs no calibration data")
    decoder = LayerDecoder(checkpoint, device)
    for layer in range(checkpoint.geometry.num_layers):
        decoder.load(checkpoint, layer)
        looking, energy = observer(layer), ModalityMean()
        with stock_code(), full_float32():
            for number, sample in enumerate(inputs):
                hidden, is_image = sample.hidden.to(device), sample.is_image.to(device)
                squares = hidden[0].double().square().sum(-1)
                for image in (False, True):
                    of_modality = squares[is_image == image]
                    energy.add(of_modality.sum(), len(of_modality), image=image)
                after = _through(decoder, hidden, is_image, looking)
                if not after.isfinite().all():
                    raise CheckpointError(f"{checkpoint.path}: layer {layer}: hidden states are not finite")
                inputs[number] = Inputs(after.cpu(), sample.is_image)
        yield ObservedLayer(layer, looking, float(energy.mixed()))


def _through(decoder: LayerDecoder, hidden: torch.Tensor, is_image: torch.Tensor, observer: Observer) -> torch.Tensor:
    """The residual stream behind the loaded layer; *observer* is shown what happens inside."""
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
