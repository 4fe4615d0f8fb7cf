"""How near a conversion is to its original in what the two say: KL and top-1 agreement on samples that were held out.

E, the change of a layer's attention output, is what fits make small. It is not what people want of a model, and the two
part: so the nearness of no compensation, of the S4 scale and of the converted weights is measured, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..calibration.inputs import Inputs
from ..compensation import MODES, HeadMix
from ..compensation.fitting import known_before_fitting
from ..errors import VerificationError
from ..model.decoder import HeadsHook, LayerDecoder, full_float32, stock_code
from ..model.divergence import Compared, Divergence, compare
from ..model.output_head import OutputHead
from ..progress import Advance
from .claim import Claim

if TYPE_CHECKING:
    import torch

NOTICED = 0.01  # by which a KL must be smaller than another to be called nearer
WITHOUT_DATA = ("none", "scale")


@dataclass(frozen=True)
class Agreement:
    """What was measured on *num_tokens* tokens of text and answers in *num_samples* held-out samples.

    *converted* are the weights as they stand in OUT, by the compensation *mode*; *without_data* maps ``none`` and
    ``scale`` to what those would have been.
    """

    num_samples: int
    num_tokens: int
    mode: str
    converted: Divergence
    without_data: dict[str, Divergence]

    @property
    def others(self) -> dict[str, Divergence]:
        """:attr:`without_data` without the mode itself."""
        return {mode: nearness for mode, nearness in self.without_data.items() if mode != self.mode}

    @property
    def advice(self) -> str | None:
        """A sentence where another mode, which needs no data, is nearer to the original; else None."""
        nearer = {mode: other for mode, other in self.others.items() if _is_nearer(other, self.converted)}
        if not nearer:
            return None
        best = min(nearer, key=lambda mode: nearer[mode].kl)
        otherwise = ", or calibrate with more data" if MODES[self.mode].needs_moments else ""
        return (
            f"on {self.num_tokens:,} held-out tokens, {best} is nearer to the original than {self.mode} (KL "
            f"{nearer[best].kl:.3g} against {self.converted.kl:.3g}); use `compensation='{best}'`{otherwise}"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures for a script to read."""
        nearness = {mode: other.to_json() for mode, other in self.without_data.items()}
        return {
            "num_samples": self.num_samples,
            "num_tokens": self.num_tokens,
            **nearness,
            "converted": self.converted.to_json(),
        }

    def to_lines(self) -> list[str]:
        """A small table, and what is better than what, for a person to read."""
        rows = {**self.others, f"{self.mode}, as stored": self.converted}
        width = max(map(len, rows))
        lines = [
            f"agreement with the original, on {self.num_tokens:,} tokens of {self.num_samples} held-out samples:",
            f"{'':<{width}}         KL  same top token",
            *(f"{name:<{width}}  {row.kl:>9.3e}  {row.top1:>14.1%}" for name, row in rows.items()),
        ]
        worse = [mode for mode, other in self.others.items() if _is_nearer(self.converted, other)]
        if worse:
            lines.append(f"{self.mode} is nearer to the original than {' and '.join(worse)}")
        return lines


def _is_nearer(one: Divergence, other: Divergence) -> bool:
    """Whether the KL is smaller by more than :data:`NOTICED`."""
    return one.kl < other.kl * (1 - NOTICED)


def check_agreement(claim: Claim, inputs: Sequence[Inputs], *, device: str, advance: Advance) -> Agreement | None:
    """The agreement on the text of *inputs*, one decoder layer in memory at a time; None without samples.

    What needs no data is applied at the input of ``o_proj`` at run time; the converted weights are those of OUT. The
    models run on *device*; *advance* is told 1 after every layer.

    Raises:
        VerificationError: what the converted model says is not finite; or it was trained, and is no nearer to the
            original than no compensation.
        CheckpointError: weights do not fit the stock code.
        StorageError: they cannot be read.
    """
    import torch

    if not inputs:
        return None
    streams = _through_layers(claim, [sample.hidden.to(device) for sample in inputs], device, advance)
    head = OutputHead(claim.original, device)
    parts: dict[str, list[Compared]] = {model: [] for model in streams if model != "original"}
    with torch.inference_mode():
        for number, sample in enumerate(inputs):
            places = sample.places("all").to(device)
            said = {model: head.normed(stream[number][0, places]) for model, stream in streams.items()}
            for model, of_model in parts.items():
                of_model.append(compare(head, said["original"], said[model]))
    nearness = {model: Divergence.mean(of_model) for model, of_model in parts.items()}
    if not all(math.isfinite(one.kl) for one in nearness.values()):
        raise VerificationError("on held-out samples, what the model says is not finite; check IN's weights")
    trained, none = nearness.pop("converted"), nearness["none"]
    if claim.fits.trains and not trained.kl < none.kl:
        raise VerificationError(
            f"{claim.converted.path}: on held-out samples, its KL to the original is {trained.kl:.4g}, and that of no "
            f"compensation {none.kl:.4g}; do not use it, and train with more data or a lower rate"
        )
    return Agreement(len(inputs), trained.tokens, claim.fits.mode, trained, nearness)


def _through_layers(
    claim: Claim, hidden: list[torch.Tensor], device: str, advance: Advance
) -> dict[str, list[torch.Tensor]]:
    """The residual stream behind the last layer of every sample, in each of the models, by their names."""
    original, converted, mask = claim.original, claim.converted, claim.mask
    mixes = {mode: known_before_fitting(mode, original, mask).mixes for mode in WITHOUT_DATA}
    decoder = LayerDecoder(original, device)
    streams = dict.fromkeys(("original", *WITHOUT_DATA, "converted"), hidden)

    def run(model: str, hook: HeadsHook | None = None) -> list[torch.Tensor]:
        return [decoder.forward(sample, hook) for sample in streams[model]]

    sides = {layer: [original] + [converted] * (layer in mask.touched_layers) for layer in range(mask.num_layers)}
    loaded = decoder.load_each((side, layer) for layer, of_layer in sides.items() for side in of_layer)
    for layer in loaded:
        with stock_code(), full_float32():
            after = {"original": run("original")}
            if layer < mask.touched_layers[0]:  # in all models, it is still the same
                streams = dict.fromkeys(streams, after["original"])
                advance(1)
                continue
            for mode in WITHOUT_DATA:
                mix: HeadMix | None = mixes[mode].get(layer)
                after[mode] = run(mode, None if mix is None else mix.apply_to_heads)
            if layer in mask.touched_layers:
                next(loaded)
            after["converted"] = run("converted")
        streams = after
        advance(1)
    return streams
