"""Saliency equals what stock attention, or stored activations, say directly."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModel, AutoTokenizer, LlavaForConditionalGeneration

from s4convert.calibration.inputs import Inputs, make_inputs
from s4convert.calibration.samples import Sample, read_samples
from s4convert.checkpoint import Checkpoint
from s4convert.demo import QUESTIONS
from s4convert.errors import CalibrationError, CheckpointError, UsageError
from s4convert.mask.head_scores import HeadScores
from s4convert.model.front_end import load_processor
from s4convert.saliency import METRICS, score_heads
from s4convert.saliency.metrics import Settings
from s4convert.saliency.reconstruction import DAMPING, greedy_removal
from s4convert.saliency.score import score_inputs
from tests.conftest import MINI_LLAVA
from tests.support import seams
from tests.support.original_layout import write_original_layout
from tests.support.synthetic import Spec, write_checkpoint

FILE = QUESTIONS / "questions.json"
IMAGE_TOKEN, PATCHES = 640, 16


def full_model(path: Path, **options: Any) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(path, **options).float().eval()


def decoder_layers(model: Any) -> Any:
    return next(m for name, m in model.named_modules() if name.endswith("layers") and "vision" not in name)


def stock_inputs(sample: Sample, directory: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the full Hugging Face model takes for *sample*, tokenised as *directory* does, and its image positions."""
    processor = load_processor(MINI_LLAVA)
    image = None if sample.image is None else Image.open(sample.image).convert("RGB")
    if directory == MINI_LLAVA:
        inputs = dict(processor(text=sample.text, images=image, return_tensors="pt"))
    else:  # llava.mm_utils.tokenizer_image_token
        tokenizer = AutoTokenizer.from_pretrained(directory)
        chunks = [tokenizer(chunk)["input_ids"] for chunk in sample.text.split("<image>")]
        like = dict(processor(text="<image>", images=image, return_tensors="pt")) if image else {}
        places = [IMAGE_TOKEN] * int((like["input_ids"] == IMAGE_TOKEN).sum()) if image else []
        token_ids = torch.tensor([chunks[0] + places + [token for chunk in chunks[1:] for token in chunk[1:]]])
        inputs = {"input_ids": token_ids, "attention_mask": torch.ones_like(token_ids)}
        if image:
            inputs["pixel_values"] = like["pixel_values"]
    ids = inputs["input_ids"][0].tolist()
    expand = PATCHES if ids.count(IMAGE_TOKEN) == 1 else 1  # up to transformers 4.4x the model does it
    positions = [flag for token in ids for flag in [token == IMAGE_TOKEN] * (expand if token == IMAGE_TOKEN else 1)]
    return inputs, torch.tensor(positions)


def directly_scored(attentions: list[tuple[torch.Tensor, ...]], positions: list[torch.Tensor]) -> np.ndarray:
    """[layers, heads]: variance + 0.4 * mean over all (text query, earlier image key) pairs, averaged over samples."""
    scores = []
    for layers, is_image in zip(attentions, positions, strict=True):
        pairs = [(q, k) for q in range(len(is_image)) for k in range(q) if is_image[k] and not is_image[q]]
        if not pairs:
            continue
        queries, keys = torch.tensor(pairs).T
        weights = np.stack([layer[0][:, queries, keys].double().numpy() for layer in layers])
        scores.append(weights.var(axis=-1) + 0.4 * weights.mean(axis=-1))
    return np.mean(scores, axis=0)


@pytest.mark.parametrize("layout", ["Hugging Face", "original"])
def test_cross_attention_equals_that_of_the_full_eager_model(tmp_path: Path, layout: str) -> None:
    directory = MINI_LLAVA
    if layout == "original":
        directory = tmp_path / "llava-mini"
        write_original_layout(MINI_LLAVA, directory, tmp_path / "tower")
    model = full_model(MINI_LLAVA, attn_implementation="eager")
    attentions, positions = [], []
    samples = read_samples(FILE, QUESTIONS, 5)
    for sample in samples.samples:
        inputs, is_image = stock_inputs(sample, directory)
        with torch.inference_mode():
            attentions.append(model(**inputs, output_attentions=True).attentions)
        assert attentions[-1][0].shape[-1] == len(is_image)
        positions.append(is_image)
    expected = directly_scored(attentions, positions)
    found = score_heads(Checkpoint.open(directory), "cross-attention", samples=samples)
    np.testing.assert_allclose(np.array(found.scores), expected, rtol=1e-5)


@pytest.mark.parametrize("text_model", ["llama", "mistral", "qwen2"])
def test_cross_attention_with_shared_kv_heads(tmp_path: Path, text_model: str) -> None:
    spec = Spec(num_layers=2, heads_per_group=3, head_dim=4, hidden_size=24, dtype="F32", text_model=text_model)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", spec))
    text_config = {name: value for name, value in checkpoint.text_config.items() if name != "model_type"}
    config = AutoConfig.for_model(text_model, **text_config)
    full = AutoModel.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for layer, module in enumerate(full.layers):
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.layers[layer][name])))
    inputs = some_inputs(spec.hidden_size, [(3, 6, 5), (1, 4, 90)])
    attentions = []
    with torch.inference_mode():
        for sample in inputs:
            output = full(inputs_embeds=sample.hidden, output_attentions=True, use_cache=False)
            attentions.append(output.attentions)
    expected = directly_scored(attentions, [sample.is_image for sample in inputs])
    found = score_inputs(checkpoint, "cross-attention", inputs, Settings())
    np.testing.assert_allclose(np.array(found.scores), expected, rtol=1e-5)


def some_inputs(hidden_size: int, parts: list[tuple[int, int, int]]) -> list[Inputs]:
    """Seeded inputs of (text before, image, text after) tokens each."""
    generator = torch.Generator().manual_seed(0)
    return [
        Inputs(
            torch.randn(1, before + image + after, hidden_size, generator=generator),
            torch.tensor([False] * before + [True] * image + [False] * after),
        )
        for before, image, after in parts
    ]


@pytest.fixture(scope="module")
def activations() -> list[tuple[np.ndarray, np.ndarray]]:
    """Per layer: the inputs of o_proj [tokens, 128] of the full model over all samples, and each token's weight."""
    model = full_model(MINI_LLAVA)
    stored: list[list[np.ndarray]] = [[] for _ in range(8)]
    for layer, module in enumerate(decoder_layers(model)):
        module.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs, kept=stored[layer]: kept.append(inputs[0][0].double().numpy())
        )
    positions = []
    for sample in read_samples(FILE, QUESTIONS).samples:
        inputs, is_image = stock_inputs(sample, MINI_LLAVA)
        with torch.inference_mode():
            model(**inputs)
        positions.append(is_image.numpy())
    is_image = np.concatenate(positions)
    weights = np.where(is_image, 0.5 / is_image.sum(), 0.5 / (~is_image).sum())
    return [(np.concatenate(rows), weights) for rows in stored]


def output_weight(layer: int) -> np.ndarray:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    return checkpoint.read_rows(checkpoint.output_projection(layer)).astype(np.float64)


def test_energy_equals_that_of_stored_activations(activations: list[tuple[np.ndarray, np.ndarray]]) -> None:
    found = score_heads(Checkpoint.open(MINI_LLAVA), "energy", samples=read_samples(FILE, QUESTIONS))
    for layer, (rows, weights) in enumerate(activations):
        for head in range(8):
            columns = slice(16 * head, 16 * head + 16)
            squares = ((rows[:, columns] @ output_weight(layer)[:, columns].T) ** 2).sum(axis=1)
            assert found.scores[layer][head] == pytest.approx((weights * squares).sum(), rel=1e-6)


def refitted_error(
    rows: np.ndarray, weights: np.ndarray, weight: np.ndarray, removed: list[int], damping: float
) -> float:
    """E when *removed* heads go and the kept ones are refitted by ridge regression, from activations alone."""
    scaled = rows * np.sqrt(weights)[:, None]
    gone = np.concatenate([np.arange(16 * head, 16 * head + 16) for head in removed])
    kept = np.setdiff1d(np.arange(128), gone)
    target = scaled[:, gone] @ weight[:, gone].T
    ridge = np.concatenate([scaled[:, kept], np.sqrt(damping) * np.eye(len(kept))])
    wanted = np.concatenate([target, np.zeros((len(kept), 128))])
    change = np.linalg.lstsq(ridge, wanted, rcond=None)[0] if len(kept) else np.zeros((0, 128))
    return float(((target - scaled[:, kept] @ change) ** 2).sum())


def test_reconstruction_equals_greedy_refits_on_stored_activations(
    activations: list[tuple[np.ndarray, np.ndarray]],
) -> None:
    found = score_heads(Checkpoint.open(MINI_LLAVA), "reconstruction", samples=read_samples(FILE, QUESTIONS))
    for layer in range(0, 8, 2):
        rows, weights = activations[layer]
        weight = output_weight(layer)
        damping = DAMPING * float((weights[:, None] * rows**2).sum() / 128)
        removed: list[int] = []
        before, lowest = 0.0, 0.0
        while len(removed) < 8:
            errors = {
                head: refitted_error(rows, weights, weight, [*removed, head], damping)
                for head in range(8)
                if head not in removed
            }
            best = min(errors, key=lambda head: errors[head])
            lowest = max(errors[best] - before, lowest)
            assert found.scores[layer][best] == pytest.approx(lowest, rel=1e-6)
            before = errors[best]
            removed.append(best)
        assert sorted(range(8), key=lambda head: found.scores[layer][head]) == removed


def test_residual_energy_is_that_of_the_hidden_states() -> None:
    model = full_model(MINI_LLAVA)
    text, image = [], []
    for sample in read_samples(FILE, QUESTIONS).samples:
        inputs, is_image = stock_inputs(sample, MINI_LLAVA)
        with torch.inference_mode():
            states = torch.stack(model(**inputs, output_hidden_states=True).hidden_states[:8])[:, 0].double()
        squares = states.square().sum(-1).numpy()
        text.append(squares[:, ~is_image.numpy()])
        image.append(squares[:, is_image.numpy()])
    expected = np.concatenate(text, axis=1).mean(1) / 2 + np.concatenate(image, axis=1).mean(1) / 2
    # Also where the metric itself looks at no data.
    for metric in ("energy", "random"):
        found = score_heads(Checkpoint.open(MINI_LLAVA), metric, samples=read_samples(FILE, QUESTIONS))
        assert found.provenance["residual_energy"] == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("metric", list(METRICS))
def test_the_same_arguments_give_the_same_bits(metric: str) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    one, other = (
        json.dumps(score_heads(checkpoint, metric, samples=read_samples(FILE, QUESTIONS, 2)).to_json())
        for _ in range(2)
    )
    assert one == other


@pytest.mark.parametrize("metric", ["cross-attention", "energy", "reconstruction"])
def test_the_order_of_samples_does_not_matter(metric: str) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    inputs = make_inputs(checkpoint, read_samples(FILE, QUESTIONS, 3).samples)
    forwards = score_inputs(checkpoint, metric, list(inputs), Settings())
    backwards = score_inputs(checkpoint, metric, inputs[::-1], Settings())
    np.testing.assert_allclose(np.array(forwards.scores), np.array(backwards.scores), rtol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any tensor has that torch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


def test_attention_weights_are_never_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    tokens, heads, parts = 700, 8, [(20, 80, 600)]
    with LargestTensor() as largest:
        in_blocks = score_inputs(checkpoint, "cross-attention", some_inputs(128, parts), Settings())
    assert largest.elements <= max(heads * seams.rows_of_attention() * tokens, tokens * tokens)
    assert largest.elements * 7 < heads * tokens * tokens
    seams.attend_in_rows_of(monkeypatch, 7)
    smaller = score_inputs(checkpoint, "cross-attention", some_inputs(128, parts), Settings())
    np.testing.assert_allclose(np.array(in_blocks.scores), np.array(smaller.scores), rtol=1e-6)


def test_equal_heads_are_removed_by_number() -> None:
    steps = greedy_removal(torch.eye(12).double(), torch.eye(12).double(), 4)
    order = [step.head for step in steps]
    assert order == [0, 1, 2, 3]


def test_a_head_that_others_can_replace_goes_first() -> None:
    # Heads 1 and 2 say nearly the same, and head 1 is hardly listened to; head 0 says little; head 3 nothing at all.
    generator = np.random.Generator(np.random.PCG64(0))
    rows = generator.normal(size=(500, 8))
    rows[:, 4:6] = rows[:, 2:4] + 0.01 * generator.normal(size=(500, 2))
    rows[:, :2] *= 0.3
    rows[:, 6:] = 0.0
    weight = generator.normal(size=(8, 8))
    weight[:, 2:4] *= 0.1
    steps = list(greedy_removal(torch.from_numpy(weight.T @ weight), torch.from_numpy(rows.T @ rows / 500), 4))
    assert [step.head for step in steps[:2]] == [3, 1]
    assert steps[0].error == pytest.approx(0.0, abs=1e-12)
    assert steps[1].error < 1e-2 * steps[-1].error


def test_a_silent_layer_scores_zero() -> None:
    steps = list(greedy_removal(torch.eye(8).double(), torch.zeros(8, 8).double(), 4))
    assert [step.head for step in steps] == [0, 1, 2, 3]
    assert all(step.error == pytest.approx(0.0, abs=1e-12) for step in steps)


def test_a_failed_factorisation_is_an_error() -> None:
    with pytest.raises(ArithmeticError, match="not positive definite"):
        list(greedy_removal(torch.eye(4).double(), torch.full((4, 4), float("nan")).double(), 2))


def test_magnitude_is_the_norm_of_the_product() -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    found = score_heads(checkpoint, "magnitude")
    assert "residual_energy" not in found.provenance
    for layer in range(8):
        value = checkpoint.projection(layer, "v", "weight")
        assert value is not None
        values = checkpoint.read_rows(value.tensor).astype(np.float64)
        for head in range(8):
            columns = slice(16 * head, 16 * head + 16)
            expected = np.linalg.norm(output_weight(layer)[:, columns] @ values[columns])
            assert found.scores[layer][head] == pytest.approx(expected, rel=1e-12)


def spoil(path: Path, projection: str, value: float) -> None:
    """Put *value* into a weight of layer 5, head 3."""
    name = f"language_model.model.layers.5.self_attn.{projection}_proj.weight"
    shard = path / Checkpoint.open(path).tensors[name].shard
    tensors = load_file(shard)
    tensors[name][48, 48] = value
    save_file(tensors, shard, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("projection", ["v", "o"])
def test_a_weight_that_is_not_finite_has_no_magnitude(mini_llava: Path, projection: str, value: float) -> None:
    spoil(mini_llava, projection, value)
    message = rf"layers\.5\.self_attn\.{projection}_proj\.weight \(layer 5\) holds NaN or infinity"
    with pytest.raises(CheckpointError, match=message):
        score_heads(Checkpoint.open(mini_llava), "magnitude")


@pytest.mark.parametrize("metric", ["cross-attention", "energy", "reconstruction"])
@pytest.mark.parametrize("projection", ["q", "v", "o"])
def test_a_weight_that_is_not_finite_gives_no_score(mini_llava: Path, metric: str, projection: str) -> None:
    spoil(mini_llava, projection, float("nan"))
    with pytest.raises(CheckpointError, match="layer 5: hidden states are not finite"):
        score_heads(Checkpoint.open(mini_llava), metric, samples=read_samples(FILE, QUESTIONS, 1))


@pytest.mark.parametrize("metric", ["energy", "reconstruction", "magnitude"])
def test_no_metric_makes_a_score_of_what_is_no_number(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.read_projections_as(monkeypatch, float("nan"))  # of which max(0.0, ...) is 0.0
    inputs = [] if metric == "magnitude" else some_inputs(128, [(2, 16, 3)])
    with pytest.raises(CalibrationError, match=f"{metric}: layer 0, head 0: the score nan is not a finite number"):
        score_inputs(Checkpoint.open(MINI_LLAVA), metric, inputs, Settings())


def test_random_is_numpys_and_seeded() -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    expected = np.random.Generator(np.random.PCG64(5)).random((8, 8))
    found = score_heads(checkpoint, "random", seed=5)
    assert np.array_equal(np.array(found.scores), expected)
    made_on = {"source": "mini-llava", "fingerprint": checkpoint.fingerprint}
    assert found.provenance == {"tool_version": "0.1.0", "metric": "random", "seed": 5} | made_on
    assert score_heads(checkpoint, "random", seed=6).scores != found.scores


def test_plain_text_gives_energy_but_no_cross_attention(tmp_path: Path) -> None:
    checkpoint, texts = Checkpoint.open(MINI_LLAVA), tmp_path / "texts.txt"
    texts.write_text("The box has two.\nThe cup has nine.\n")
    found = score_heads(checkpoint, "energy", samples=read_samples(texts))
    assert isinstance(found, HeadScores) and min(min(layer) for layer in found.scores) > 0
    assert found.provenance["calibration"]["image_tokens"] == 0
    with pytest.raises(CalibrationError, match="no sample has an image"):
        score_heads(checkpoint, "cross-attention", samples=read_samples(texts))


def test_samples_without_an_image_are_counted_in_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        score_heads(Checkpoint.open(MINI_LLAVA), "cross-attention", samples=read_samples(FILE, QUESTIONS, 99))
    assert "holds 8 samples, fewer than 99" in caplog.text
    assert "4 of 8 samples have no image, so they have no score and do not count" in caplog.text


def test_provenance_tells_what_was_measured() -> None:
    found = score_heads(
        Checkpoint.open(MINI_LLAVA), "cross-attention", samples=read_samples(FILE, QUESTIONS, 2), gamma=0.5
    )
    assert (found.provenance["metric"], found.provenance["gamma"]) == ("cross-attention", 0.5)
    calibration = found.provenance["calibration"]
    assert (calibration["num_samples"], calibration["image_tokens"]) == (2, 32)
    (file,) = calibration["files"]
    assert (file["file"], file["samples"], file["window_tokens"], len(file["sha256"])) == (
        "questions.json",
        2,
        2048,
        64,
    )
    assert len(found.provenance["residual_energy"]) == 8


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        ("entropy", {}, "no such metric; use one of cross-attention"),
        ("energy", {}, "needs calibration data; give `calibration`, or use one of magnitude, random"),
        ("random", {"seed": -1}, "`seed` -1"),
        ("random", {"device": "abacus"}, "there is no such device"),
        ("cross-attention", {"samples": read_samples(FILE, QUESTIONS), "gamma": float("nan")}, "`gamma` nan"),
    ],
)
def test_bad_requests(metric: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        score_heads(Checkpoint.open(MINI_LLAVA), metric, **options)
    assert "\n" not in str(error.value)


def test_an_image_behind_all_text_has_no_score() -> None:
    with pytest.raises(CalibrationError, match="no sample has a text token behind an image"):
        score_inputs(Checkpoint.open(MINI_LLAVA), "cross-attention", some_inputs(128, [(5, 16, 0)]), Settings())
