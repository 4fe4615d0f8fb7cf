"""What original, reference and converted say comes next on the probe: the logits behind the last layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..calibration.inputs import Inputs
from ..compensation.figures import rounded
from ..errors import VerificationError
from ..model.decoder import full_float32
from ..model.divergence import Compared, Divergence
from ..model.output_head import OutputHead

if TYPE_CHECKING:
    import torch

_BLOCK = 128  # tokens at a time: each has a number for every token of the vocabulary, in each of the models


@dataclass(frozen=True)
class NextToken:
    """How near *reference* and *converted* are to the original, at the places of text.

    *perplexity* is that of each model, ``original`` too, on the *num_predicted* tokens of text that stand behind
    another token; without any, it is empty.
    """

    reference: Divergence
    converted: Divergence
    perplexity: Mapping[str, float]
    num_predicted: int

    def to_json(self) -> dict[str, Any]:
        """The figures for a script to read; a perplexity is None where it is unknown or too large for a number."""
        return {
            "text_tokens": self.converted.tokens,
            "predicted_tokens": self.num_predicted,
            "original": {"perplexity": self._told("original")},
            "reference": {**self.reference.to_json(), "perplexity": self._told("reference")},
            "converted": {**self.converted.to_json(), "perplexity": self._told("converted")},
        }

    def to_lines(self) -> list[str]:
        """A small table for a person to read."""
        lines = [f"next token, at {self.converted.tokens:,} of text         KL  same top token  perplexity"]
        width = lines[0].index("         KL")
        for model, near in (("original", None), ("reference", self.reference), ("converted", self.converted)):
            perplexity = self._told(model)
            shown = f"{'':>9}  {'':>14}" if near is None else f"{near.kl:>9.3e}  {near.top1:>14.1%}"
            lines.append(
                f"{model:<{width}}  {shown}  {'' if perplexity is None else f'{perplexity:#.4g}':>10}".rstrip()
            )
        return lines

    def _told(self, model: str) -> float | None:
        perplexity = self.perplexity.get(model, math.inf)
        return rounded(perplexity) if math.isfinite(perplexity) else None


def compare_next_token(
    head: OutputHead, samples: Sequence[Inputs], states: Mapping[str, Sequence[torch.Tensor]]
) -> NextToken:
    """The figures of the residual *states* [1, tokens, hidden_size] behind the last layer, of every sample, by model.

    Raises:
        VerificationError: a model's logits are not finite.
    """
    import torch

    near: dict[str, list[Compared]] = {"reference": [], "converted": []}
    loss, num_predicted, device = dict.fromkeys(states, 0.0), 0, states["original"][0].device
    with torch.inference_mode(), full_float32():
        for number, sample in enumerate(samples):
            is_text, coming = (~sample.is_image).to(device), _coming(sample).to(device)
            places = (is_text | (coming >= 0)).nonzero()[:, 0]
            for rows in (places[first : first + _BLOCK] for first in range(0, len(places), _BLOCK)):
                said = {
                    model: head.logits(head.normed(of_samples[number][0, rows])).log_softmax(-1)
                    for model, of_samples in states.items()
                }
                at_text, targets = is_text[rows], coming[rows]
                predicted = ((targets >= 0) & (targets < said["original"].shape[1])).nonzero()[:, 0]
                num_predicted += len(predicted)
                for model, found in said.items():
                    loss[model] -= float(found[predicted, targets[predicted]].double().sum())
                for model, parts in near.items():
                    parts.append(_compared(said["original"][at_text], said[model][at_text]))
    reference, converted = (Divergence.mean([Compared.together(parts)]) for parts in near.values())
    if not all(math.isfinite(one) for one in (reference.kl, converted.kl, *loss.values())):
        raise VerificationError("on the probe, what the model says comes next is not finite; check IN's weights")
    means = {model: total / num_predicted for model, total in loss.items()} if num_predicted else {}
    perplexity = {model: math.exp(mean) if mean < 700 else math.inf for model, mean in means.items()}
    return NextToken(reference, converted, perplexity, num_predicted)


def _coming(sample: Inputs) -> torch.Tensor:
    """The token of text behind each place of *sample* [tokens], -1 where there is none or it is not known."""
    import torch

    coming = torch.full(sample.is_image.shape, -1)
    if sample.token_ids is not None:
        coming[:-1] = sample.token_ids[1:]
    return coming


def _compared(wanted: torch.Tensor, found: torch.Tensor) -> Compared:
    """Of log-probabilities [tokens, vocabulary]."""
    import torch

    divergence = torch.nn.functional.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    equal = (wanted.argmax(-1) == found.argmax(-1)).sum()
    return Compared(divergence.double().sum(), equal, len(found))
