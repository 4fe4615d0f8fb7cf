"""How near a conversion is to its original in what the two say: KL and top-1 agreement on samples that were held out.

E, the change of a layer's attention output, is what fits make small. It is not what people want of a model, and the two
part: so the nearness of no compensation, of the S4 scale and of the converted weights is measured, side by side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

WITHOUT_DATA = ("none", "scale")


@dataclass(frozen=True)
class Nearness:
    """How near models are to the original at *num_tokens* places: *converted* are the weights as they stand in OUT;
    *without_data* maps ``none`` and ``scale`` to what those would have been."""

    num_tokens: int
    converted: Divergence
    without_data: dict[str, Divergence]

    def is_further(self, mode: str) -> bool:
        """Whether *mode* is further from the original than the converted weights are."""
        return self.converted.is_nearer(self.without_data[mode])

    def tells_apart(self, mode: str) -> bool:
        """Whether *mode* is further from the original than the converted weights, or nearer."""
        return self.is_further(mode) or self.without_data[mode].is_nearer(self.converted)

    def to_json(self) -> dict[str, Any]:
        """The figures for a script to read."""
        nearness = {mode: other.to_json() for mode, other in self.without_data.items()}
        return {"num_tokens": self.num_tokens, **nearness, "converted": self.converted.to_json()}


@dataclass(frozen=True)
class Agreement:
    """What was measured, by the compensation *mode*, in *num_samples* held-out samples.

    It is on their *text*, answers included, and at their *answers* alone, if they have any. These are what people read:
    what is nearer at the answers is called nearer, and only where they do not tell, what is nearer on the text.
    """

    num_samples: int
    mode: str
    text: Nearness
    answers: Nearness | None

    @property
    def _told_apart(self) -> dict[str, Nearness]:
        """The modes that can be told apart from the converted weights, and what tells."""
        told: dict[str, Nearness] = {}
        for measured in (self.text, self.answers):
            if measured is not None:
                told |= {mode: measured for mode in WITHOUT_DATA if measured.tells_apart(mode)}
        return {mode: measured for mode, measured in told.items() if mode != self.mode}

    @property
    def advice(self) -> str | None:
        """A sentence where another mode, which needs no data, is nearer to the original; else None."""
        nearer = {mode: measured for mode, measured in self._told_apart.items() if not measured.is_further(mode)}
        if not nearer:
            return None
        best = min(nearer, key=lambda mode: (nearer[mode] is self.text, nearer[mode].without_data[mode].kl))
        measured = nearer[best]
        otherwise = ", or calibrate with more data" if MODES[self.mode].needs_moments else ""
        return (
            f"on {measured.num_tokens:,} held-out tokens{'' if measured is self.text else ' of answers'}, {best} is "
            f"nearer to the original than {self.mode} (KL {measured.without_data[best].kl:.3g} against "
            f"{measured.converted.kl:.3g}); use `compensation='{best}'`{otherwise}"
        )

    def to_json(self) -> dict[str, Any]:
        """The figures for a script to read."""
        answers = {} if self.answers is None else {"answers": self.answers.to_json()}
        return {"num_samples": self.num_samples, **self.text.to_json(), **answers}

    def to_lines(self) -> list[str]:
        """A small table, and what is better than what, for a person to read."""
        measured = [self.text] if self.answers is None else [self.text, self.answers]
        names = {mode: mode for mode in WITHOUT_DATA if mode != self.mode} | {"converted": f"{self.mode}, as stored"}
        width = max(map(len, names.values()))
        heads = [f"{kind}: {one.num_tokens:,} tokens" for kind, one in zip(("text", "answers"), measured, strict=False)]
        lines = [
            f"agreement with the original, on {self.num_samples} held-out samples:",
            f"{'':<{width}}" + "".join(f"  {head:>25}" for head in heads),
            f"{'':<{width}}" + "         KL  same top token" * len(measured),
        ]
        for mode, name in names.items():
            row = [one.converted if mode == "converted" else one.without_data[mode] for one in measured]
            lines.append(f"{name:<{width}}" + "".join(f"  {one.kl:>9.3e}  {one.top1:>14.1%}" for one in row))
        further = [mode for mode, measured in self._told_apart.items() if measured.is_further(mode)]
        if further:
            lines.append(f"{self.mode} is nearer to the original than {' and '.join(sorted(further))}")
        return lines


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
    parts, at_answers = ({model: list[Compared]() for model in streams if model != "original"} for _ in range(2))
    with torch.inference_mode():
        for number, sample in enumerate(inputs):
            places, answered = sample.places("all").to(device), sample.answered.to(device)
            said = {model: head.normed(stream[number][0, places]) for model, stream in streams.items()}
            for model in parts:
                parts[model].append(compare(head, said["original"], said[model]))
                if bool(answered.any()):
                    at_answers[model].append(compare(head, said["original"][answered], said[model][answered]))
    text = _nearness(parts)
    if not all(math.isfinite(one.kl) for one in (text.converted, *text.without_data.values())):
        raise VerificationError("on held-out samples, what the model says is not finite; check IN's weights")
    trained, none = text.converted, text.without_data["none"]
    if claim.fits.trains and not trained.kl < none.kl:
        raise VerificationError(
            f"{claim.converted.path}: on held-out samples, its KL to the original is {trained.kl:.4g}, and that of no "
            f"compensation {none.kl:.4g}; do not use it, and train with more data or a lower rate"
        )
    return Agreement(len(inputs), claim.fits.mode, text, _nearness(at_answers) if at_answers["converted"] else None)


def _nearness(parts: Mapping[str, list[Compared]]) -> Nearness:
    """Of the samples of every model but the original."""
    models = {model: Divergence.mean(of_model) for model, of_model in parts.items()}
    converted = models.pop("converted")
    return Nearness(converted.tokens, converted, models)


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
