"""The figures of a report once more, from the hidden states and the logits of whole stock models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from s4convert.calibration.inputs import Inputs
from s4convert.verify.behaviour import BehaviourReport


@dataclass(frozen=True)
class Run:
    """What one sample came to: *states* [tokens, hidden_size] before each layer and behind the last one, and *said*,
    the log-probabilities [tokens, vocabulary] in float64."""

    states: list[torch.Tensor]
    said: torch.Tensor


def run(model: Any, **inputs: torch.Tensor) -> Run:
    """One sample through *model*."""
    behind: list[torch.Tensor] = []
    norm = next(module for name, module in model.named_modules() if name.rpartition(".")[2] == "norm")
    hook = norm.register_forward_pre_hook(lambda _, given: behind.append(given[0][0]))
    with torch.inference_mode():
        output = model(**inputs, output_hidden_states=True)
    hook.remove()
    # The last of the states is the stock model's behind the final norm.
    states = [*(state[0] for state in output.hidden_states[:-1]), *behind]
    return Run(states, output.logits[0].double().log_softmax(-1))


def assert_figures(behaviour: BehaviourReport | None, samples: Sequence[Inputs], runs: Mapping[str, list[Run]]) -> None:
    """The figures of *behaviour* are those of *runs*, which has each sample of the probe by model."""
    assert behaviour is not None
    for row in behaviour.layers:
        whole = {}
        for modality, one in row.apart.items():
            states = {
                model: torch.cat(
                    [
                        run.states[row.layer + 1][sample.is_image == (modality == "image")]
                        for run, sample in zip(of_model, samples, strict=True)
                    ]
                )
                for model, of_model in runs.items()
            }
            for other in ("original", "reference"):
                for figure, wanted in _distance(states["converted"], states[other]).items():
                    found = getattr(getattr(one, other), figure)
                    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-12), (row.layer, modality, other, figure)
            whole[modality] = states
        found, before, hooked = (
            torch.cat([of_modality[model] for of_modality in whole.values()])
            for model in ("converted", "original", "reference")
        )
        figures = (row.mean_abs_delta, row.relative_delta, row.reference_error)
        of_all = _distance(found, before)
        wanted_of_all = (of_all["mean_abs_delta"], of_all["relative_delta"], _distance(found, hooked)["relative_delta"])
        assert figures == pytest.approx(wanted_of_all, rel=1e-5, abs=1e-12), row.layer
    _assert_next_token(behaviour, samples, runs)


def _assert_next_token(behaviour: BehaviourReport, samples: Sequence[Inputs], runs: Mapping[str, list[Run]]) -> None:
    losses: dict[str, list[float]] = {model: [] for model in runs}
    at_text: dict[str, torch.Tensor] = {}
    for model, of_model in runs.items():
        for run, sample in zip(of_model, samples, strict=True):
            assert sample.token_ids is not None
            for place, token in enumerate(sample.token_ids.tolist()):
                if place and token >= 0:
                    losses[model].append(-float(run.said[place - 1, token]))
        at_text[model] = torch.cat([run.said[~sample.is_image] for run, sample in zip(of_model, samples, strict=True)])
    found, original = behaviour.next_token, at_text["original"]
    assert found.num_predicted == len(losses["original"])
    assert found.converted.tokens == len(original)
    for model, of_model in losses.items():
        perplexity = float(torch.tensor(of_model, dtype=torch.float64).mean().exp())
        assert found.perplexity[model] == pytest.approx(perplexity, rel=1e-5)
    for model in ("reference", "converted"):
        kl = torch.nn.functional.kl_div(at_text[model], original, reduction="batchmean", log_target=True)
        assert getattr(found, model).kl == pytest.approx(float(kl), rel=1e-5)
        same = (at_text[model].argmax(-1) == original.argmax(-1)).double().mean()
        assert getattr(found, model).top1 == pytest.approx(float(same))


def _distance(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """Of states [tokens, hidden_size]."""
    a, b = found.double(), wanted.double()
    return {
        "mean_abs_delta": float((a - b).abs().mean()),
        "max_abs_delta": float((a - b).abs().max()),
        "relative_delta": float((a - b).norm() / b.norm()),
        "cosine": float(((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).mean()),
    }
