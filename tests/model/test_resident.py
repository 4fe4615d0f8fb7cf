"""The resident model is the stock model: its logits, its answers in a batch, its weights after a change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from s4convert.checkpoint import Checkpoint
from s4convert.demo import MINI_LLAVA, QUESTIONS
from s4convert.errors import CheckpointError, UsageError, VerificationError
from s4convert.model.decoder import require_stock_code
from s4convert.model.front_end import conversation, load_processor, open_front_end
from s4convert.model.resident import Change, ResidentModel
from tests.families.fixtures import FIXTURES, Fixture
from tests.families.test_families import load, write_tower
from tests.support.limits import limited
from tests.support.synthetic import Spec, shapes, write_checkpoint

LENGTHS = (9, 4, 12)
NEW_TOKENS = 6


def token_ids(length: int) -> torch.Tensor:
    return torch.randint(3, 59, (1, length), generator=torch.Generator().manual_seed(length))


def opened(fixture: Fixture, directory: Path) -> Checkpoint:
    checkpoint = Checkpoint.open(fixture.write(directory, torch.float32))
    try:
        require_stock_code(checkpoint)
    except UsageError as error:
        pytest.skip(str(error))
    return checkpoint


@pytest.mark.filterwarnings("ignore:.*(max_length|pad_token_id|generation).*")
@pytest.mark.parametrize(
    "fixture",
    [
        pytest.param(fixture, id=fixture.name, marks=pytest.mark.battery if number % 3 else ())
        for number, fixture in enumerate(FIXTURES)
    ],
)
def test_logits_and_answers_in_a_batch_are_those_of_the_whole_stock_model_alone(
    fixture: Fixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(fixture, tmp_path)
    if "mm_vision_tower" in fixture.settings:
        monkeypatch.chdir(tmp_path)
        write_tower(tmp_path / "tower")
    stock, resident = load(fixture, checkpoint.path), ResidentModel(checkpoint)
    asked = [token_ids(length) for length in LENGTHS]
    with torch.inference_mode():
        prompts = [stock.get_input_embeddings()(ids) for ids in asked]
        alone = [stock(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0] for ids in asked]
        said = [generated(stock, ids) for ids in asked]
    for wanted, found in zip(alone, resident.logits(prompts, [3, 3, 3]), strict=True):
        torch.testing.assert_close(found, wanted[-4:-1], rtol=1e-4, atol=1e-4)
    assert resident.generate(prompts, max_new_tokens=NEW_TOKENS) == said
    resident.check_unchanged()


def generated(stock: Any, ids: torch.Tensor) -> list[int]:
    """What unbatched greedy ``generate`` appends to *ids*, without the end of the answer."""
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": 2, "pad_token_id": 0}
    if hasattr(stock, "get_vision_tower"):  # LLaVA's own takes no attention mask, and answers with a first token
        tokens: list[int] = stock.generate(ids, **options)[0, 1:].tolist()
    else:
        output = stock.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        tokens = output[0, ids.shape[1] :].tolist()
    return tokens[: tokens.index(2)] if 2 in tokens else tokens


def test_the_mini_llava_answers_in_a_batch_what_it_answers_alone_images_included() -> None:
    from PIL import Image
    from transformers import LlavaForConditionalGeneration

    checkpoint = Checkpoint.open(MINI_LLAVA)
    front_end = open_front_end(checkpoint, with_images=True)
    stock = LlavaForConditionalGeneration.from_pretrained(MINI_LLAVA).float().eval()
    processor = load_processor(MINI_LLAVA)
    prompts, wanted = [], []
    for name in (None, "1.png", "2.png"):
        image = None if name is None else Image.open(QUESTIONS / name).convert("RGB")
        text = conversation([("<image>\nWhat color is the square?" if image else "The box has two. Which has?", None)])
        prompts.append(front_end(text, image)[0])
        inputs = processor(text=text, images=image, return_tensors="pt")
        inputs = {name: value for name, value in inputs.items() if value is not None}
        with torch.inference_mode():
            output = stock.generate(**inputs, do_sample=False, max_new_tokens=8)[0]
        tokens = output[inputs["input_ids"].shape[1] :].tolist()
        wanted.append([token for token in tokens if token != stock.generation_config.eos_token_id])
    assert len({prompt.shape[1] for prompt in prompts}) > 1
    assert ResidentModel(checkpoint).generate(prompts, max_new_tokens=8) == wanted


# --- changes --------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(dtype="F16")))


def state(model: ResidentModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model._parameters.items()}


def unlike(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_change_is_what_a_conversion_would_store_and_is_out_again_bit_for_bit(small: Checkpoint) -> None:
    model, output, value = ResidentModel(small), small.output_projection(0), small.layers[1]["self_attn.v_proj.weight"]
    before = state(model)
    changes = [
        Change(output, 0, output.num_rows, lambda rows: rows * (1 / 3)),
        Change(value, 1, 2, lambda rows: rows * 0),
        Change(value, 2, 2, lambda rows: rows + 1),  # over a row that was changed already
    ]
    with model.changed(changes):
        during = state(model)
        with pytest.raises(VerificationError, match="is not as it was loaded"):
            model.check_unchanged()
    assert unlike(before, during) == {output.name, value.name}
    assert torch.equal(during[output.name], (before[output.name] / 3).half().float())
    assert torch.equal(during[value.name][1], torch.zeros_like(during[value.name][1]))
    assert torch.equal(during[value.name][2], torch.ones_like(during[value.name][2]))
    assert unlike(before, state(model)) == set()
    model.check_unchanged()


def test_an_error_inside_or_in_a_change_puts_the_weights_back_too(small: Checkpoint) -> None:
    model, output = ResidentModel(small), small.output_projection(0)
    before = state(model)
    twice = Change(output, 0, output.num_rows, lambda rows: rows * 2)
    with pytest.raises(KeyboardInterrupt), model.changed([twice]):
        raise KeyboardInterrupt
    assert unlike(before, state(model)) == set()
    beyond = Change(output, 0, output.num_rows, lambda rows: rows * 1e9)
    with pytest.raises(CheckpointError, match="would overflow F16 when compensated"), model.changed([twice, beyond]):
        raise AssertionError("was entered")
    assert unlike(before, state(model)) == set()
    model.check_unchanged()


def test_a_single_bit_that_changed_is_noticed(small: Checkpoint) -> None:
    model = ResidentModel(small)
    weight = model._parameters[small.final_norm.name]
    with torch.no_grad():
        weight.view(torch.int32)[0] ^= 1
    with pytest.raises(VerificationError, match=f"{small.final_norm.name}: is not as it was loaded"):
        model.check_unchanged()


# --- what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"), [({"dtype": "int8"}, "`dtype` 'int8' is none of"), ({"device": "abacus"}, "abacus")]
)
def test_no_such_dtype_or_device(small: Checkpoint, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ResidentModel(small, **options)


def test_weights_of_another_shape_than_the_config_says_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "checkpoint", Spec())
    config = json.loads((path / "config.json").read_text())
    config["text_config"]["intermediate_size"] += 1
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"mlp.* has shape .*; stock code wants"):
        ResidentModel(Checkpoint.open(path))


def test_loading_takes_what_the_model_takes_and_little_more(tmp_path: Path) -> None:
    """Loading through a state dict would take half as much again."""
    spec = Spec(
        num_layers=4,
        num_kv_heads=8,
        head_dim=64,
        hidden_size=512,
        intermediate_size=2048,
        vocab_size=48000,
        dtype="F16",
    )
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", spec, sparse=True))
    of_model = 4 * sum(math.prod(shape) for name, shape in shapes(spec).items() if "vision_tower" not in name)
    assert of_model > 200e6
    with limited(more_bytes=of_model + of_model // 4, seconds=60):
        model = ResidentModel(checkpoint)
    assert sum(parameter.nbytes for parameter in model._parameters.values()) == of_model
