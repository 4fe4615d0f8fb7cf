"""One decoder layer at a time gives the full model's hidden states, bit for bit."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel

from s4convert.checkpoint import Checkpoint
from s4convert.errors import StorageError
from s4convert.model.attention import AttentionInput
from s4convert.model.decoder import LayerDecoder
from tests.support.synthetic import HUGGING_FACE, ORIGINAL, Spec, write_checkpoint


@pytest.mark.parametrize("layout", [HUGGING_FACE, ORIGINAL])
@pytest.mark.parametrize("text_model", ["llama", "mistral", "qwen2"])
def test_equals_the_full_model(tmp_path: Path, text_model: str, layout: str) -> None:
    spec = Spec(
        num_layers=3, heads_per_group=2, head_dim=4, hidden_size=16, dtype="F32", text_model=text_model, layout=layout
    )
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", spec))
    text_config = {
        name: value
        for name, value in checkpoint.text_config.items()
        if name not in ("model_type", "architectures", "mm_vision_tower")
    }
    full = AutoModel.from_config(AutoConfig.for_model(text_model, **text_config)).float().eval()
    full.norm = torch.nn.Identity()  # so that the last entry is the plain residual stream as well
    with torch.no_grad():
        for layer, module in enumerate(full.layers):
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.layers[layer][name])))
    hidden = torch.randn(1, 11, spec.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = full(inputs_embeds=hidden, output_hidden_states=True, use_cache=False).hidden_states
    decoder, ahead = LayerDecoder(checkpoint), LayerDecoder(checkpoint)
    read_ahead = hidden
    for layer in ahead.load_each((checkpoint, layer) for layer in range(spec.num_layers)):
        decoder.load(checkpoint, layer)
        hidden, read_ahead = decoder.forward(hidden), ahead.forward(read_ahead)
        assert torch.equal(hidden, expected[layer + 1])
        assert torch.equal(read_ahead, expected[layer + 1])


def test_what_cannot_be_read_ahead_is_told_when_its_turn_comes(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(num_layers=3, num_shards=2)))
    wanted = [(checkpoint, layer) for layer in range(3)]
    with pytest.raises(StorageError, match="cannot be read"):
        for number, layer in enumerate(LayerDecoder(checkpoint).load_each(wanted)):
            assert number == layer < 2
            for shard in checkpoint.shards:
                (checkpoint.path / shard).unlink(missing_ok=True)


def test_the_hook_replaces_the_input_of_o_proj(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(dtype="F32")))
    decoder = LayerDecoder(checkpoint)
    decoder.load(checkpoint, 0)
    hidden = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    plain = decoder.forward(hidden)
    assert not torch.equal(decoder.forward(hidden, lambda heads: heads * 0), plain)
    assert torch.equal(decoder.forward(hidden, lambda heads: heads * 1), plain)
    assert torch.equal(decoder.forward(hidden), plain)


def test_no_weights_are_made_up_for_those_that_are_loaded(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model", Spec()))
    before = torch.get_rng_state()
    LayerDecoder(checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_a_hook_saw_is_gone_with_it(tmp_path: Path) -> None:
    """Without the collector of cycles: on a GPU, what it has not found yet is memory that is missed."""
    write_checkpoint(tmp_path / "ckpt", Spec(num_layers=1))
    checkpoint = Checkpoint.open(tmp_path / "ckpt")
    decoder, seen = LayerDecoder(checkpoint), list[AttentionInput]()
    decoder.load(checkpoint, 0)
    gc.collect()
    gc.disable()
    try:
        decoder.forward(torch.randn(1, 5, checkpoint.geometry.hidden_size), attention_hook=seen.append)
        query = weakref.ref(seen[0].query)
        del seen
        assert query() is None
    finally:
        gc.enable()
