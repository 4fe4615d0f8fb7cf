"""``fisher`` equals what autograd says of the whole model, however it is run, and masks go along its ladders."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from s4convert import make_mask
from s4convert.calibration.inputs import Inputs, make_inputs
from s4convert.calibration.samples import Sample, read_samples
from s4convert.checkpoint import Checkpoint
from s4convert.demo import QUESTIONS
from s4convert.errors import CalibrationError, MaskError, StorageError, UsageError
from s4convert.mask import HeadScores, parse_schedule, prune_lowest
from s4convert.mask.files import load_scores
from s4convert.mask.head_scores import Ladder
from s4convert.saliency import score_heads
from s4convert.saliency.metrics import Settings
from s4convert.saliency.reconstruction import DAMPING
from s4convert.saliency.score import score_inputs
from tests.conftest import MINI_LLAVA
from tests.saliency.test_saliency import decoder_layers, full_model, some_inputs, stock_inputs
from tests.support import seams
from tests.support.original_layout import write_original_layout
from tests.support.synthetic import Spec, write_checkpoint

FILE = QUESTIONS / "questions.json"
END_OF_ANSWER = 2  # the token </s>
SEED = 3


def costs_by_autograd(
    layers: Any,
    run: Callable[[int], torch.Tensor],
    labelled: list[torch.Tensor],
    is_image: list[torch.Tensor],
    orders: list[tuple[int, ...]],
) -> list[list[float]]:
    """[layers][heads]: J of losing the first heads of *orders*, by gradients of the whole model and explicit refits.

    *run* gives the logits [tokens, vocabulary] of a sample; *labelled* says where labels are drawn from them.
    """
    seen: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in layers]

    def watch(kept: list[tuple[torch.Tensor, torch.Tensor]], outputs: torch.Tensor, after: torch.Tensor) -> None:
        after.retain_grad()
        kept.append((outputs[0].detach(), after))

    for layer, kept in zip(layers, seen, strict=True):
        layer.self_attn.o_proj.register_forward_hook(lambda _, inputs, after, kept=kept: watch(kept, inputs[0], after))
    generator = torch.Generator().manual_seed(SEED)
    for number, positions in enumerate(labelled):
        logits = run(number).double()
        draws = torch.rand(len(positions), dtype=torch.float64, generator=generator)
        labels = (logits.softmax(-1).cumsum(-1) > draws[:, None]).int().argmax(-1)
        loss = torch.nn.functional.cross_entropy(logits[positions], labels[positions], reduction="sum")
        (loss / math.sqrt(int(positions.sum()))).backward()
    flags = torch.cat(is_image)
    share = torch.where(flags, 0.5 / max(1, int(flags.sum())), 0.5 / max(1, int((~flags).sum()))).double()
    share /= share.sum()  # of each token in the moments: the half is for images and text, where there are both
    costs = []
    for layer, kept, order in zip(layers, seen, orders, strict=True):
        outputs = torch.cat([heads for heads, _ in kept]).double()
        gradients = torch.cat([after.grad[0] for _, after in kept]).double()
        weight = layer.self_attn.o_proj.weight.detach().double()
        moments = outputs.T @ (outputs * share[:, None])
        damping, head_dim = DAMPING * moments.diagonal().mean(), outputs.shape[1] // len(order)
        row = []
        for count in range(1, len(order) + 1):
            gone = torch.tensor([head * head_dim + i for head in order[:count] for i in range(head_dim)])
            left = torch.tensor([column for column in range(len(moments)) if column not in set(gone.tolist())])
            refit = torch.zeros_like(weight)
            if len(left):
                system = moments[left][:, left] + damping * torch.eye(len(left))
                refit[:, left] = (
                    weight[:, left] + weight[:, gone] @ torch.linalg.solve(system, moments[left][:, gone]).T
                )
            squares = (gradients * (outputs @ (refit - weight).T)).sum(1) ** 2
            row.append(float(squares.sum()) / len(labelled))
        costs.append(row)
    return costs


def labels_of(sample: Sample, ids: list[int], is_image: torch.Tensor, loss: str) -> torch.Tensor:
    """[tokens]: whether what comes next is an answer's letter or its end; or any text, what is behind the last too."""
    positions = torch.zeros(len(is_image), dtype=torch.bool)
    if loss == "all" or "ASSISTANT: " not in sample.text:
        positions[:-1], positions[-1] = ~is_image[1:], True
        return positions
    text = (~is_image).nonzero()[:, 0].tolist()
    for place, token in zip(text, ids, strict=True):
        if token == END_OF_ANSWER:
            positions[[place - 2, place - 1]] = True
    return positions


@pytest.mark.parametrize(("resident", "loss"), [(False, "answers"), (True, "all")])
def test_the_cost_is_that_of_autograd_on_the_whole_mini_llava(tmp_path: Path, resident: bool, loss: str) -> None:
    directory = MINI_LLAVA
    if loss == "answers":
        directory = tmp_path / "llava-mini"
        write_original_layout(MINI_LLAVA, directory, tmp_path / "tower")
    entries = json.loads(FILE.read_text())
    del entries[1]["conversations"][1]  # a question without an answer
    entries[2]["conversations"] += [{"from": "human", "value": "And now?"}, {"from": "gpt", "value": "B"}]
    questions = tmp_path / "questions.json"
    questions.write_text(json.dumps(entries))
    samples = read_samples(questions, QUESTIONS)
    checkpoint = Checkpoint.open(directory)
    found = score_heads(checkpoint, "fisher", samples=samples, seed=SEED, loss=loss, resident=resident)
    vocabulary = checkpoint.vocabulary_projection.num_rows  # smaller in the original layout
    model = full_model(MINI_LLAVA)
    stock = [stock_inputs(sample, directory) for sample in samples.samples]
    labelled = []
    for sample, (inputs, is_image) in zip(samples.samples, stock, strict=True):
        ids = [token for token in inputs["input_ids"][0].tolist() if token != 640]
        labelled.append(labels_of(sample, ids, is_image, loss))
    assert found.provenance["num_labels"] == sum(int(positions.sum()) for positions in labelled)
    assert found.ladders is not None
    expected = costs_by_autograd(
        decoder_layers(model),
        lambda number: model(**stock[number][0]).logits[0, :, :vocabulary],
        labelled,
        [is_image for _, is_image in stock],
        [tuple(ladder.order) for ladder in found.ladders],
    )
    np.testing.assert_allclose([ladder.cost for ladder in found.ladders], expected, rtol=1e-4)


@pytest.mark.parametrize("resident", [False, True])
def test_the_cost_with_shared_kv_heads_and_biases(tmp_path: Path, resident: bool) -> None:
    spec = Spec(num_layers=3, heads_per_group=3, head_dim=4, hidden_size=24, dtype="F32", text_model="qwen2")
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", spec))
    text_config = {name: value for name, value in checkpoint.text_config.items() if name != "model_type"}
    full = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **text_config)).float().eval()
    with torch.no_grad():
        for layer, module in enumerate(full.model.layers):
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.layers[layer][name])))
        full.model.norm.weight.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.final_norm)))
        full.lm_head.weight.copy_(torch.from_numpy(checkpoint.read_rows(checkpoint.vocabulary_projection)))
    inputs = some_inputs(spec.hidden_size, [(30, 0, 10), (25, 0, 0)])
    before = [sample.hidden.clone() for sample in inputs]
    found = score_inputs(checkpoint, "fisher", inputs, Settings(seed=SEED, resident=resident))
    assert found.ladders is not None
    expected = costs_by_autograd(
        full.model.layers,
        lambda number: full(inputs_embeds=before[number], use_cache=False).logits[0],
        [torch.ones(40, dtype=torch.bool), torch.ones(25, dtype=torch.bool)],
        [sample.is_image for sample in inputs],
        [tuple(ladder.order) for ladder in found.ladders],
    )
    np.testing.assert_allclose([ladder.cost for ladder in found.ladders], expected, rtol=1e-4)


def test_the_order_is_that_of_reconstruction_and_the_labels_are_seeded() -> None:
    checkpoint, samples = Checkpoint.open(MINI_LLAVA), read_samples(FILE, QUESTIONS, 2)
    found = score_heads(checkpoint, "fisher", samples=samples, loss="all")
    order = score_heads(checkpoint, "reconstruction", samples=samples)
    assert found.ladders is not None
    for ladder, by_error, by_cost in zip(found.ladders, order.scores, found.scores, strict=True):
        assert list(ladder.order) == sorted(range(8), key=by_error.__getitem__)
        assert list(ladder.order) == sorted(range(8), key=by_cost.__getitem__)
    other = score_heads(checkpoint, "fisher", samples=samples, loss="all", seed=1)
    assert found.ladders[0].cost != (other.ladders or ())[0].cost


@pytest.mark.parametrize("layout", ["Hugging Face", "original"])
def test_answers_are_found_behind_images_and_in_every_turn(tmp_path: Path, layout: str) -> None:
    directory = MINI_LLAVA
    if layout == "original":
        directory = tmp_path / "llava-mini"
        write_original_layout(MINI_LLAVA, directory, tmp_path / "tower")
    said = ["What is red?", "The box.", "And what else?", "A"]
    turns = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(said)]
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "1.png", "conversations": turns}))
    checkpoint = Checkpoint.open(directory)
    (sample,) = samples = read_samples(tmp_path / "q.jsonl", QUESTIONS).samples
    assert [sample.text[begin:end] for begin, end in sample.answers] == [" The box.</s>", " A</s>"]
    (inputs,) = make_inputs(checkpoint, samples)
    ids, is_image = stock_inputs(sample, directory)
    text = [token for token in ids["input_ids"][0].tolist() if token != 640]
    assert inputs.is_answer is not None and not bool(inputs.is_answer[is_image].any())
    from transformers import AutoTokenizer

    answered = [token for token, one in zip(text, inputs.is_answer[~is_image].tolist(), strict=True) if one]
    assert AutoTokenizer.from_pretrained(directory).decode(answered).replace(" ", "") == "Thebox.</s>A</s>"


ORDER = ((2, 0, 1), (0, 1, 2), (1, 2, 0))
COST = ((3.0, 1.0, 9.0), (0.5, 2.0, 2.5), (2.0, 2.25, 50.0))  # a cost may fall, and need not grow ever faster
LADDERS = [Ladder(order, cost) for order, cost in zip(ORDER, COST, strict=True)]


def pruned(scores: HeadScores, schedule: str, rate: str | None = None, **options: Any) -> list[list[int]]:
    return [list(heads) for heads in prune_lowest(scores, parse_schedule(schedule, rate, **options)).pruned]


def test_every_schedule_goes_along_the_ladders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    HeadScores.of_ladders(LADDERS, {"metric": "fisher"}).save(tmp_path / "scores.json")
    scores = load_scores(tmp_path / "scores.json")
    assert scores == HeadScores.of_ladders(LADDERS, {"metric": "fisher"})
    assert pruned(scores, "uniform", "0.4") == [[2], [0], [1]]
    assert pruned(scores, "bands:0:0.6,1-2:0.4") == [[0, 2], [0], [1]]
    assert pruned(scores, "adaptive", "0.5") == [[2], [0], [1, 2]]
    # Steps cost 3, -2 | .5, 1.5 | 2, .25, and a layer's second one comes only behind its first.
    assert pruned(scores, "global", "0.12") == [[], [0], []]
    assert pruned(scores, "global", "0.34") == [[], [0, 1], [1]]
    assert pruned(scores, "global", "0.45") == [[], [0, 1], [1, 2]]
    assert pruned(scores, "global", "0.45", protect="1") == [[0, 2], [], [1, 2]]
    assert pruned(scores, "global", "0.67") == [[0, 2], [0, 1], [1, 2]]
    assert "normalisers" not in caplog.text
    with pytest.raises(UsageError, match="costs of single heads"):
        prune_lowest(scores, parse_schedule("uniform", "0.4"), granularity="group", num_kv_heads=3)


def spoilt(**changes: Any) -> dict[str, Any]:
    return HeadScores.of_ladders(LADDERS).to_json() | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (spoilt(order={"0": [0, 1, 2], "1": [0, 1, 2], "2": [1, 2, 0]}), "layer 0: the order .* is not that of its"),
        (spoilt(order={"0": [2, 0, 1], "1": [0, 1, 1], "2": [1, 2, 0]}), "layer 1: the order"),
        (spoilt(cost={"0": [1, 2, 3], "1": [1, 2], "2": [1, 2, 3]}), "layer 1: the cost .* is not a list of 3"),
        (spoilt(cost={"0": [1, 2, 3], "1": [1, 2, "x"], "2": [1, 2, 3]}), "layer 1, step 2: the cost 'x'"),
        (spoilt(cost={"0": [1, 2, 3]}), "cost is not an object that maps every layer"),
        (spoilt(order=None), "order is not an object that maps every layer"),
    ],
)
def test_what_is_no_ladder_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(content))
    with pytest.raises(MaskError, match=message):
        load_scores(tmp_path / "scores.json")


def test_bad_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    for options, message in (
        ({"metric": "energy", "loss": "answers"}, "are for `metric='fisher'`"),
        ({"metric": "energy", "resident": True}, "are for `metric='fisher'`"),
        ({"metric": "fisher", "loss": "some"}, "`loss` 'some' is none of all, answers"),
    ):
        with pytest.raises(UsageError, match=message):
            score_heads(checkpoint, **options, samples=read_samples(FILE, QUESTIONS, 1))
    with pytest.raises(UsageError, match="costs of single heads"):
        make_mask(
            MINI_LLAVA,
            metric="fisher",
            calibration=FILE,
            images=QUESTIONS,
            schedule="uniform",
            rate=0.3,
            granularity="group",
        )
    sample = some_inputs(128, [(4, 0, 0)])[0]
    cut = Inputs(sample.hidden, sample.is_image, 9, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(CalibrationError, match="cut off before its answers"):
        score_inputs(checkpoint, "fisher", [cut], Settings(loss="answers"))
    mixed = score_inputs(
        checkpoint, "fisher", [cut, Inputs(sample.hidden.clone(), sample.is_image)], Settings(loss="answers")
    )
    assert mixed.provenance is not None and mixed.provenance["num_labels"] == 4
    seams.leave_for_fisher(monkeypatch, 1000)
    with pytest.raises(StorageError, match=r"fisher keeps .* bytes there .* but 1,000 are free; .* TMPDIR"):
        score_inputs(checkpoint, "fisher", [sample], Settings())
