"""What stands behind the last layer is the stock model's: its logits, and their gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA
from s4convert.errors import CheckpointError
from s4convert.model import output_head
from s4convert.model.output_head import OutputHead
from s4convert.model.resident import ResidentModel
from tests.support.synthetic import Spec, write_checkpoint


def test_its_logits_and_their_gradient_are_those_of_the_whole_stock_model(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    monkeypatch.setattr(output_head, "_BLOCK_BYTES", 100 * 4 * checkpoint.geometry.hidden_size)  # a short last block
    head, stock = OutputHead(checkpoint), ResidentModel(checkpoint)._model
    hidden = torch.randn(7, checkpoint.geometry.hidden_size, generator=torch.Generator().manual_seed(0))
    hidden.requires_grad_()
    wanted = stock.lm_head(stock.model.norm(hidden))
    normed = head.normed(hidden)
    logits = head.logits(normed.detach())
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    of_logits = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    (by_autograd,) = torch.autograd.grad(wanted, hidden, of_logits)
    (found,) = torch.autograd.grad(normed, hidden, head.pull_back(of_logits))
    torch.testing.assert_close(found, by_autograd, rtol=1e-4, atol=1e-5)


def test_an_lm_head_that_cannot_be_computed_with_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "in", Spec()))
    stored = checkpoint.vocabulary_projection
    checkpoint.__dict__["vocabulary_projection"] = replace(stored, entry=replace(stored.entry, dtype="F8_E4M3"))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is stored as F8_E4M3; only"):
        OutputHead(checkpoint)


def test_a_final_norm_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "in", Spec()))
    wrong = Checkpoint.open(MINI_LLAVA)
    checkpoint.__dict__["final_norm"] = wrong.final_norm
    with pytest.raises(CheckpointError, match="the final norm has shape"):
        OutputHead(checkpoint)
