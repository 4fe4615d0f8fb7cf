"""The search swaps heads along their orders, only where the KL falls, and says what it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from s4convert import HeadMask, make_mask
from s4convert.calibration.inputs import Inputs, make_inputs
from s4convert.calibration.moments import LayerMoments, Moments
from s4convert.calibration.samples import read_samples
from s4convert.checkpoint import Checkpoint
from s4convert.compensation import fit
from s4convert.demo import QUESTIONS
from s4convert.errors import UsageError
from s4convert.mask.files import load_mask, load_scores
from s4convert.model.resident import ResidentModel
from s4convert.study.search import Searcher
from s4convert.study.swap import swapped
from tests.conftest import MINI_LLAVA
from tests.saliency.test_saliency import decoder_layers, full_model
from tests.support import seams
from tests.support.command_line import run_here
from tests.support.environments import in_the_newest_environment

pytestmark = in_the_newest_environment

FILE = QUESTIONS / "questions.json"
DATA: dict[str, Any] = {"calibration": FILE, "images": QUESTIONS, "schedule": "global", "rate": 0.3}
ORDERS = [list(np.random.default_rng(layer).permutation(8)) for layer in range(8)]
COUNTS = [3, 0, 7, 2, 2, 2, 2, 2]


@pytest.fixture(scope="module")
def inputs() -> list[Inputs]:
    made = make_inputs(Checkpoint.open(MINI_LLAVA), read_samples(FILE, QUESTIONS, 6).samples)
    last = made[-1]  # shorter than the other that judges, so that it is padded
    made[-1] = replace(last, hidden=last.hidden[:, :-5], is_image=last.is_image[:-5])
    return made


@pytest.fixture(scope="module")
def searcher(inputs: list[Inputs]) -> Searcher:
    positions = [~sample.is_image for sample in inputs[4:]]
    return Searcher(ResidentModel(Checkpoint.open(MINI_LLAVA)), ORDERS, inputs[:4], inputs[4:], positions)


def divergence_by_stock_code(inputs: list[Inputs], counts: list[int], directory: Path) -> float:
    """The KL to the original of the samples behind the fourth, with the compensation of a conversion swapped in."""
    checkpoint, stock = Checkpoint.open(MINI_LLAVA), full_model(MINI_LLAVA)
    rows: list[list[torch.Tensor]] = [[] for _ in range(8)]
    flags = torch.cat([sample.is_image for sample in inputs[:4]]).numpy()
    for layer, module in enumerate(decoder_layers(stock)):
        module.self_attn.o_proj.register_forward_pre_hook(lambda _, heads, kept=rows[layer]: kept.append(heads[0][0]))
    with torch.inference_mode():
        for sample in inputs[:4]:
            stock(inputs_embeds=sample.hidden)
    share = np.where(flags, 0.5 / flags.sum(), 0.5 / (~flags).sum())

    def moments(layer: int) -> LayerMoments:
        heads = torch.cat(rows[layer][:4]).double().numpy()
        return LayerMoments(Moments(heads.T @ (heads * share[:, None]), share @ heads, len(heads)))

    pruned = tuple(tuple(sorted(map(int, order[:count]))) for order, count in zip(ORDERS, counts, strict=True))
    mask = HeadMask(8, pruned)
    fits = fit("least-squares", checkpoint, mask, directory, moments=moments)
    model, total = ResidentModel(checkpoint), 0.0
    for sample in inputs[4:]:
        places = (~sample.is_image).nonzero()[:, 0]
        (before,) = model.logits([torch.cat([sample.hidden, sample.hidden[:, -1:]], 1)], [len(sample.is_image)])
        with swapped(model, checkpoint, mask, fits):
            (after,) = model.logits([torch.cat([sample.hidden, sample.hidden[:, -1:]], 1)], [len(sample.is_image)])
        before, after = (one[places].double().log_softmax(-1) for one in (before, after))
        total += float((before.exp() * (before - after)).sum()) / len(places)
    return total / len(inputs[4:])


def test_a_state_has_the_kl_of_its_conversion_and_a_swap_stays_where_that_falls(
    searcher: Searcher, inputs: list[Inputs], tmp_path: Path
) -> None:
    found = searcher.search(COUNTS, seconds=60, seed=(1,), frozen=(3,), most=12)
    assert (found.proposals, sum(found.counts), found.counts[3]) == (12, sum(COUNTS), 2)
    assert found.kl_before == pytest.approx(divergence_by_stock_code(inputs, COUNTS, tmp_path), rel=1e-3)
    assert found.kl_after == pytest.approx(divergence_by_stock_code(inputs, list(found.counts), tmp_path), rel=1e-3)
    assert 0 < len(found.swaps) < 12 and found.kl_after == found.swaps[-1][2] < found.kl_before
    counts, lowest = list(COUNTS), found.kl_before
    for back, lost, divergence in found.swaps:
        counts[back], counts[lost] = counts[back] - 1, counts[lost] + 1
        assert min(counts) >= 0 and max(counts) < 8 and divergence < lowest
        lowest = divergence
    assert tuple(counts) == found.counts
    some = searcher.search(COUNTS, seconds=60, seed=(1,), frozen=(3,), most=6)
    assert some.swaps == found.swaps[: len(some.swaps)] and len(some.swaps) > 0
    other = searcher.search(COUNTS, seconds=60, seed=(2,), frozen=(3,), most=6)
    assert other.swaps != some.swaps and other.kl_before == found.kl_before


def test_it_ends_where_every_swap_was_tried_in_vain(searcher: Searcher) -> None:
    frozen = (2, 3, 4, 5, 6, 7)
    found = searcher.search(COUNTS, seconds=60, seed=(1,), frozen=frozen)
    assert found.exhausted and found.proposals < 8
    again = searcher.search(found.counts, seconds=60, seed=(1,), frozen=frozen)
    assert (again.counts, again.swaps, again.kl_after) == (found.counts, (), found.kl_after)
    searcher.refit(0, 0)
    for layer in range(1, 8):
        searcher.refit(layer, 0)
    assert searcher.divergence() == pytest.approx(0.0, abs=1e-9)


def test_the_command_searches_says_so_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.tick_in_search(monkeypatch)
    data = ("--calibration", FILE, "--images", QUESTIONS, "--schedule", "global", "--rate", "0.3")
    scores, mask, more = tmp_path / "scores.json", tmp_path / "mask.json", tmp_path / "more.json"
    first = run_here(
        "mask", MINI_LLAVA, "-o", mask, "--metric", "energy", "--save-scores", scores, *data, "--search", "40"
    )
    assert first.exit_code == 0, first.stderr
    geometry = Checkpoint.open(MINI_LLAVA).geometry
    found, plain = load_mask(mask, geometry), make_mask(scores=scores, schedule="global", rate=0.3).mask
    assert found.provenance is not None and found.num_pruned == plain.num_pruned == 19
    log = found.provenance["search"]
    assert load_scores(scores).provenance["calibration"]["num_samples"] == 7  # type: ignore[index]
    assert log["accepted"] == len(log["swaps"]) > 0 and log["kl_after"] < log["kl_before"]
    assert f"search: {log['accepted']} of {log['proposals']} swaps accepted" in first.stdout
    counts = [len(heads) for heads in plain.pruned]
    for back, lost, _ in log["swaps"]:
        counts[back], counts[lost] = counts[back] - 1, counts[lost] + 1
    assert counts == [len(heads) for heads in found.pruned]
    again = run_here("mask", MINI_LLAVA, "--scores", scores, "-o", more, "--start", mask, *data, "--search", "8")
    assert again.exit_code == 0, again.stderr
    next_log = json.loads(more.read_text())["provenance"]["search"]
    assert next_log["kl_before"] == pytest.approx(log["kl_after"], rel=1e-6)
    assert next_log["total_proposals"] == log["proposals"] + next_log["proposals"]
    assert next_log["started_from"] == "mask.json"


def test_bad_requests(tmp_path: Path) -> None:
    good: dict[str, Any] = {**DATA, "metric": "magnitude", "search": 1.0}
    wrong = HeadMask(8, ((7,), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5), (), (), (), ()))
    wrong.save(tmp_path / "wrong.json")
    HeadMask(8, ((7,), *[()] * 7)).save(tmp_path / "few.json")
    for options, message in (
        ({"search": 0.0}, "`search` 0.0: give a number of seconds above 0"),
        ({"num_samples": 4}, "holds back a fifth of the samples, and 4 are too few"),
        ({"calibration": None, "images": None, "metric": "random"}, "runs the whole model; give the checkpoint, and"),
        ({"granularity": "group"}, "`search` swaps single heads"),
        ({"search": None, "start": "mask.json"}, "`start` is the mask that a search goes on from"),
        ({"start": tmp_path / "few.json"}, "prunes 1 heads, but the schedule 19"),
        ({"start": tmp_path / "wrong.json"}, r"layer \d: heads .* are not the first that go by these scores"),
        ({"loss": "some"}, "`loss` 'some' is none of"),
    ):
        with pytest.raises(UsageError, match=message):
            make_mask(MINI_LLAVA, **{**good, **options})
    with pytest.raises(UsageError, match="give the checkpoint"):
        make_mask(None, **{**good, "metric": None, "scores": "scores.json"})
