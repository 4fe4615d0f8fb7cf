"""Distillation is what it is defined as: gradients by autograd, steps by torch's Adam, on the whole stock model."""

from __future__ import annotations

import copy
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s4convert import Checkpoint, HeadMask
from s4convert.calibration.inputs import Inputs
from s4convert.calibration.samples import DataFile
from s4convert.compensation import Fits, fit
from s4convert.compensation import distillation as distillation_module
from s4convert.compensation.distillation import distill
from s4convert.compensation.training import Training, TrainingSettings
from s4convert.model import divergence as divergence_module
from s4convert.model.resident import ResidentModel
from s4convert.study.swap import swapped
from tests.compensation.test_conversion import calibrate
from tests.families.fixtures import FIXTURES
from tests.support.synthetic import Spec, write_checkpoint

GROUPED = Spec(
    num_layers=3, num_kv_heads=2, heads_per_group=2, head_dim=8, hidden_size=32, dtype="F32", text_model="qwen2"
)
MASK = HeadMask(4, ((0, 1), (), (1, 2)))  # a whole kv group in layer 0, none in layer 2
STEPS, RATE = 4, 1e-3


@pytest.fixture(scope="module", params=["grouped"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("distill")
    if request.param == "fused":
        return next(fixture for fixture in FIXTURES if fixture.fused).write(directory, torch.float32)
    return write_checkpoint(directory / "in", GROUPED)


def samples_of(checkpoint: Checkpoint, seed: int, count: int) -> list[Inputs]:
    """Of several lengths; the places 2 to 4 are an image's."""
    generator, samples = torch.Generator().manual_seed(seed), []
    for number in range(count):
        hidden = torch.randn(1, 9 + number, checkpoint.geometry.hidden_size, generator=generator)
        is_image = torch.zeros(9 + number, dtype=torch.bool)
        is_image[2:5] = True
        samples.append(Inputs(hidden, is_image))
    return samples


@pytest.fixture(scope="module")
def refit(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Fits:
    checkpoint, moments = Checkpoint.open(source), calibrate(source, num_tokens=200)
    return fit("least-squares", checkpoint, MASK, tmp_path_factory.mktemp("refit"), moments=moments)


def trained(
    source: Path, refit: Fits, scratch: Path, train: str = "qkvo", rate: float = RATE, steps: int = STEPS
) -> tuple[Checkpoint, Fits]:
    checkpoint = Checkpoint.open(source)
    model, settings = ResidentModel(checkpoint), TrainingSettings(train=train, steps=steps, learning_rate=rate)
    pupils, judges = samples_of(checkpoint, 1, 4), samples_of(checkpoint, 2, 3)
    fits = distill(checkpoint, MASK, refit, model, pupils, judges, settings, scratch)
    model.check_unchanged()
    return checkpoint, fits


def kl(original: torch.nn.Module, other: torch.nn.Module, samples: list[Inputs]) -> torch.Tensor:
    """Where no image comes next, and then over samples."""
    total = torch.zeros(())
    for sample in samples:
        with torch.no_grad():
            wanted = original(inputs_embeds=sample.hidden, use_cache=False).logits[0].log_softmax(-1)
        found = other(inputs_embeds=sample.hidden, use_cache=False).logits[0].log_softmax(-1)
        by_position = (wanted.exp() * (wanted - found)).sum(-1)
        total = total + by_position[(~sample.is_image).roll(-1)].mean()
    return total / len(samples)


@pytest.mark.parametrize(
    ("source", "train"), [("grouped", "qkvo"), ("grouped", "o"), ("fused", "qkvo")], indirect=["source"]
)
def test_it_is_what_autograd_and_torchs_adam_make_of_the_whole_model(
    source: Path, refit: Fits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: str
) -> None:
    monkeypatch.setattr(divergence_module, "_BLOCK", 7)  # a batch is more than one of them
    checkpoint, fits = trained(source, refit, tmp_path, train)
    assert fits.training is not None
    original = ResidentModel(checkpoint)._model
    model = ResidentModel(checkpoint)
    with swapped(model, checkpoint, MASK, refit):
        student = copy.deepcopy(model._model)
    weights: dict[tuple[int, str], torch.nn.Parameter] = {}
    for layer in MASK.touched_layers:
        for name, parameter in student.model.layers[layer].self_attn.named_parameters():
            held = checkpoint.projections_in(checkpoint.layers[layer][f"self_attn.{name}"])
            if name.endswith("weight") and held is not None and any(part.projection in train for part in held[1]):
                weights[layer, name] = parameter.requires_grad_()
    is_kept = {place: weight.detach() != 0 for place, weight in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), lr=RATE)
    pupils, judges = samples_of(checkpoint, 1, 4), samples_of(checkpoint, 2, 3)
    snapshots, judged = [copy.deepcopy(student)], [float(kl(original, student, judges).detach())]
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
        optimizer.zero_grad()
        kl(original, student, pupils).backward()
        for place, weight in weights.items():
            assert weight.grad is not None
            weight.grad *= is_kept[place]
        optimizer.step()
        snapshots.append(copy.deepcopy(student))
        judged.append(float(kl(original, student, judges).detach()))
    assert fits.training.refit == pytest.approx(judged[0], rel=1e-4)
    assert [check.held_out for check in fits.training.checks] == pytest.approx(judged[1:], rel=1e-3)
    assert fits.training.best_step == int(np.argmin(judged)) > 0
    best = snapshots[fits.training.best_step]
    with swapped(model, checkpoint, MASK, fits):
        for (layer, name), _ in weights.items():
            found = model.module(layer, "self_attn").get_parameter(name)
            torch.testing.assert_close(
                found, best.model.layers[layer].self_attn.get_parameter(name), rtol=0, atol=0.02 * RATE
            )


def test_the_same_inputs_give_the_same_bytes_and_torch_is_as_it_was(
    source: Path, refit: Fits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes, train, environment = [], distillation_module._train, dict(os.environ)

    def watched(*args: Any, **kwargs: Any) -> Training:
        modes.append(torch.are_deterministic_algorithms_enabled())
        return train(*args, **kwargs)

    monkeypatch.setattr(distillation_module, "_train", watched)
    kept = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        _, fits = trained(source, refit, tmp_path / name)
        kept.append([rows.read(0, 16) for layer in fits.trained.values() for rows in layer.values()])
    assert kept[0] == kept[1]
    assert len(kept[0]) == 8
    assert modes == [True, True]
    assert not torch.are_deterministic_algorithms_enabled()
    assert dict(os.environ) == environment


def test_where_held_out_samples_do_not_get_nearer_the_refit_stays(source: Path, refit: Fits, tmp_path: Path) -> None:
    checkpoint, fits = trained(source, refit, tmp_path, rate=1.0, steps=10)
    assert fits.training is not None
    assert fits.training.best_step == 0
    assert fits.training.checks[-1].step == 9  # three checks into the second half, in which the rate falls, it ends
    assert fits.trained == {}
    assert fits.mode == "distill"
    assert "so the least-squares refit stays" in fits.training.to_text()
    model = ResidentModel(checkpoint)
    assert {choice.mode for choice in fits.choices.values()} <= {"least-squares", "head-ls", "uniform-ls", "none"}
    with swapped(model, checkpoint, MASK, fits):
        weight = model.module(0, "self_attn.o_proj").get_parameter("weight").clone()
    with swapped(model, checkpoint, MASK, replace(fits, mode="least-squares")):
        assert torch.equal(weight, model.module(0, "self_attn.o_proj").get_parameter("weight"))


def test_what_makes_a_file_or_its_answers_worse_is_not_kept_however_much_it_helps_others(
    source: Path, refit: Fits, tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(source)
    learnt, other = (DataFile(name, "0" * 64) for name in ("learnt.txt", "other.json"))
    pupils = samples_of(checkpoint, 1, 4)
    is_image, is_answer = torch.zeros(2, 9, dtype=torch.bool)
    is_answer[5:7] = True
    judges = [replace(one, file=learnt) for one in pupils]
    judges.append(Inputs(torch.zeros(1, 9, GROUPED.hidden_size), is_image, is_answer=is_answer, file=other))
    found = []
    for rate in (6e-3, 1e-2):
        settings, model = TrainingSettings(steps=20, learning_rate=rate), ResidentModel(checkpoint)
        (tmp_path / str(rate)).mkdir()
        found.append(distill(checkpoint, MASK, refit, model, pupils, judges, settings, tmp_path / str(rate)))
    some, none = (fits.training for fits in found)
    assert some is not None and none is not None
    assert {check.worse for check in (*some.checks, *none.checks)} == {(), ("other.json", "the answers of other.json")}
    assert some.best_step == min((check for check in some.checks if not check.worse), key=lambda one: one.held_out).step
    assert none.best_step == 0 and not found[1].trained and min(check.held_out for check in none.checks) < none.refit
    ending = "trained, but further on other.json and the answers of other.json, so the least-squares refit stays"
    assert none.to_text().endswith(ending)
    assert none.to_json()["worse"] == {str(check.step): list(check.worse) for check in none.checks}


def test_a_step_has_four_samples_or_more_as_far_as_they_are_short_and_each_comes_once_an_epoch() -> None:
    lengths = [100] * 30 + [900] * 5
    samples = [Inputs(torch.empty(0), torch.zeros(length, dtype=torch.bool)) for length in lengths]
    seen: list[Inputs] = []
    for batch in distillation_module._order(samples):
        assert seen or len(batch) >= 4
        assert len(batch) <= 4 or len(batch) * max(len(sample.is_image) for sample in batch) <= 2560
        seen += batch
        if len(seen) >= len(samples):
            break
    assert sorted(map(id, seen)) == sorted(map(id, samples))
