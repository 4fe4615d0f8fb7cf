"""A point in memory is what its conversion on the disk is, and leaves nothing behind."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s4convert import Checkpoint, HeadMask, convert
from s4convert.compensation import MODES, MomentsSource, fit
from s4convert.errors import VerificationError
from s4convert.model.resident import ResidentModel
from s4convert.study.swap import relative_change, swapped
from tests.compensation.test_conversion import calibrate
from tests.support.modes import MAPS
from tests.support.synthetic import Spec, write_checkpoint

OWN = Spec(num_layers=3, num_kv_heads=4, head_dim=4, hidden_size=16, dtype="F16", text_model="qwen2")
GROUPED = replace(OWN, num_kv_heads=2, heads_per_group=2, dtype="BF16", text_model="mistral")
MASKS_EACH = 2  # 20 and more over all modes


def random_mask(generator: random.Random, num_layers: int, num_heads: int) -> HeadMask:
    layers = [generator.sample(range(num_heads), generator.randrange(num_heads)) for _ in range(num_layers - 1)]
    layers.append([generator.randrange(num_heads)])
    return HeadMask(num_heads, tuple(tuple(sorted(heads)) for heads in layers))


def logits_of(model: ResidentModel, prompts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(model.logits(prompts, [4] * len(prompts)))


@pytest.fixture(scope="module", params=[OWN, GROUPED], ids=["own kv heads, biases, F16", "grouped, BF16"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("swap") / "in", request.param)


@pytest.fixture(scope="module")
def moments(source: Path) -> MomentsSource:
    return calibrate(source)


@pytest.mark.parametrize("mode", MAPS)
def test_a_swapped_point_answers_as_its_conversion_and_leaves_no_bit_behind(
    source: Path, moments: MomentsSource, tmp_path: Path, mode: str
) -> None:
    checkpoint = Checkpoint.open(source)
    if MODES[mode].own_values and checkpoint.geometry.heads_per_group > 1:
        pytest.skip("the mode is refused there")
    model, generator = ResidentModel(checkpoint), random.Random(f"{mode} {checkpoint.geometry}")
    prompts = [torch.randn(1, tokens, checkpoint.geometry.hidden_size) for tokens in (6, 9)]
    before = logits_of(model, prompts)
    for number in range(MASKS_EACH):
        mask = random_mask(generator, checkpoint.geometry.num_layers, checkpoint.geometry.num_heads)
        out = tmp_path / f"out-{number}"
        convert(source, out, mask, compensation=mode, statistics=moments, check_behaviour=False, card=False)
        fits = fit(mode, checkpoint, mask, tmp_path, moments=moments)
        with swapped(model, checkpoint, mask, fits):
            swapped_in, said = logits_of(model, prompts), model.generate(prompts, max_new_tokens=3)
            with pytest.raises(VerificationError, match="is not as it was loaded"):
                model.check_unchanged()
        converted = ResidentModel(Checkpoint.open(out))
        torch.testing.assert_close(swapped_in, logits_of(converted, prompts), rtol=1e-5, atol=1e-5)
        assert said == converted.generate(prompts, max_new_tokens=3)
        assert relative_change([before], [swapped_in]) > 1e-3
    assert torch.equal(logits_of(model, prompts), before)
    model.check_unchanged()


def test_a_point_that_fails_leaves_no_bit_behind(source: Path, moments: MomentsSource, tmp_path: Path) -> None:
    checkpoint, mask = Checkpoint.open(source), HeadMask(4, ((1,), (0, 2), ()))
    model = ResidentModel(checkpoint)
    with pytest.raises(RuntimeError), swapped(model, checkpoint, mask, fit("none", checkpoint, mask, tmp_path)):
        raise RuntimeError
    model.check_unchanged()


def test_a_point_that_changes_no_logit_is_not_believed() -> None:
    logits = [torch.randn(2, 3)]
    with pytest.raises(VerificationError, match="those of the unpruned model"):
        relative_change(logits, [logits[0].clone()])


def test_heads_that_stay_loud_are_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, mask = Checkpoint.open(source), HeadMask(4, ((1,), (0, 2), ()))
    model, fits = ResidentModel(checkpoint), fit("none", checkpoint, mask, tmp_path)
    monkeypatch.setattr("s4convert.rewrite.plan.ColumnEdit.transform", lambda edit, rows: rows)
    with (
        pytest.raises(VerificationError, match=r"layer 0: heads \[\] are silent, not \[1\]"),
        swapped(model, checkpoint, mask, fits),
    ):
        pass
    model.check_unchanged()
