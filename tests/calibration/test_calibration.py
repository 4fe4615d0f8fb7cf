"""Calibration data: how question files and texts are read, and what they become for the language model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from s4convert.calibration.inputs import describe, make_inputs
from s4convert.calibration.samples import Sample, read_samples, read_texts
from s4convert.calibration.statistics import held_out_of
from s4convert.checkpoint import Checkpoint
from s4convert.demo import QUESTIONS
from s4convert.errors import CalibrationError, CheckpointError, S4ConvertError, StorageError, UsageError
from s4convert.model.front_end import (
    LETTER_INSTRUCTION,
    SYSTEM_PROMPT,
    HuggingFaceFrontEnd,
    OriginalFrontEnd,
    embed,
    open_front_end,
)
from tests.conftest import MINI_LLAVA
from tests.support import seams
from tests.support.original_layout import write_original_layout
from tests.support.synthetic import ORIGINAL, Spec, write_checkpoint


@pytest.fixture
def original_layout(tmp_path: Path) -> Path:
    write_original_layout(MINI_LLAVA, tmp_path / "llava-mini", tmp_path / "tower")
    return tmp_path / "llava-mini"


def entry(question: str = "Which?", answer: str = "This one.", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def write(directory: Path, content: object, name: str = "questions.json") -> Path:
    path = directory / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_question_file_becomes_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    turns = [("human", "What is\n<image>"), ("gpt", "A cat."), ("human", "Why?"), ("gpt", "It is.")]
    content = [
        {"id": "7", "image": "a.png", "conversations": [{"from": who, "value": text} for who, text in turns]},
        entry("Which is it?\nA. cat\nB. dog", "B"),
        {"question_id": 3, "image": "a.png", "text": "What is it?"},
    ]
    expected = [
        f"{SYSTEM_PROMPT} USER: <image>\nWhat is ASSISTANT: A cat.</s>USER: Why? ASSISTANT: It is.</s>",
        f"{SYSTEM_PROMPT} USER: Which is it?\nA. cat\nB. dog\n{LETTER_INSTRUCTION} ASSISTANT: B</s>",
        f"{SYSTEM_PROMPT} USER: <image>\nWhat is it? ASSISTANT:",
    ]
    as_list = read_samples(write(tmp_path, content), tmp_path)
    as_lines = read_samples(write(tmp_path, "\n\n".join(map(json.dumps, content)), "q.jsonl"), tmp_path)
    for data in (as_list, as_lines):
        assert [sample.text for sample in data.samples] == expected
        assert [sample.image for sample in data.samples] == [tmp_path / "a.png", None, tmp_path / "a.png"]


def test_the_first_samples_are_taken_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(str(number)) for number in range(5)])
    data = read_samples(path, num_samples=2)
    assert [sample.where for sample in data.samples] == [f"{path}: entry 1", f"{path}: entry 2"]
    assert len(read_samples(path, num_samples=9).samples) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"]),
        ("one\n  \n\ntwo", ["one", "two"]),
        ("one\ntwo\nthree\n", ["one", "two", "three"]),
        ("one\r\ntwo", ["one", "two"]),
    ],
)
def test_plain_text_is_paragraphs_or_lines(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = write(tmp_path, text, "t.txt")
    assert [sample.text for sample in read_texts(path)] == expected
    assert [sample.text for sample in read_texts(path, 1)] == expected[:1]
    (packed,) = read_samples(path).samples
    assert packed.text == ("\n\n" if "\n\n" in text or " " in text else "\n").join(expected)


TEXT = "The boat went up the river. It was dark.\n\nThe next day they saw a red box.\n\n" * 3


def test_plain_text_is_packed_into_windows_that_begin_as_any_text_does(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(MINI_LLAVA)
    tokenizer = open_front_end(checkpoint, with_images=False).tokenizer
    ids = tokenizer(TEXT.strip())["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    windows = make_inputs(checkpoint, read_samples(write(tmp_path, TEXT, "t.txt"), window=9).samples)
    assert [len(window.is_image) for window in windows[:-1]] == [9] * (len(windows) - 1)
    assert sum(len(window.is_image) - 1 for window in windows) == len(ids) - 1
    for number, window in enumerate(windows):
        expected = [ids[0], *ids[1 + 8 * number : 9 + 8 * number]]
        assert torch.equal(window.hidden, embed(checkpoint, expected)) and not window.is_image.any()
    first = make_inputs(checkpoint, read_samples(tmp_path / "t.txt", num_samples=2, window=9).samples)
    assert len(first) == 2 and torch.equal(first[1].hidden, windows[1].hidden)


def test_several_files_mix_in_their_order_and_each_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (56, 56)).save(tmp_path / name / "1.png")
    one, other = (write(tmp_path, [entry(who, image="1.png"), entry(who)], f"{who}.json") for who in ("a", "b"))
    files = (one, write(tmp_path, TEXT, "t.txt"), other)
    directories = (tmp_path / "a", tmp_path, tmp_path / "b")
    read = read_samples(files, directories, 1, window=16)
    assert [sample.image for sample in read.samples] == [tmp_path / "a" / "1.png", None, tmp_path / "b" / "1.png"]
    said = describe(make_inputs(Checkpoint.open(MINI_LLAVA), read.samples))
    assert [(file["file"], file["samples"], file["window_tokens"]) for file in said["files"]] == [
        *(("a.json", 1, 2048), ("t.txt", 1, 16), ("b.json", 1, 2048))
    ]
    assert (said["image_tokens"], said["cut_tokens"]) == (32, 0) and said["text_tokens"] > 16
    with pytest.raises(UsageError, match="2 `images` for 3 files of `calibration` data"):
        read_samples(files, directories[:2])
    with pytest.raises(UsageError, match="two files of `calibration` data are the same"):
        read_samples((one, one), tmp_path / "a")
    with pytest.raises(UsageError, match="`window` 1: give 2 to 2048 tokens"):
        read_samples(files[1], window=1)


def test_what_is_held_out_is_spread_evenly() -> None:
    assert [place for place, out in enumerate(held_out_of(12, 0.25)) if out] == [3, 7, 11]
    assert not any(held_out_of(9, 0))


MALFORMED: list[tuple[object, str, str]] = [
    ("[{", "questions.json", "is not JSON"),
    ("", "questions.json", "holds no samples"),
    ([], "questions.json", "holds no samples"),
    ("plain words", "questions.json", "line 1: is not JSON"),
    (json.dumps(entry()) + "\n{", "q.jsonl", "line 2: is not JSON"),
    (
        {"1": {"question": "Q?", "choices": ["a"], "answer": 0}},
        "problems.json",
        "is ScienceQA's own problems.json",
    ),
    (json.dumps(entry(), indent=1), "questions.json", "is one JSON object; give a JSON list of questions"),
    ([entry(), 3], "questions.json", "entry 2: is not a JSON object"),
    ([{"id": "x"}], "questions.json", "entry 1 (id x): has neither conversations nor a text"),
    ([{"conversations": []}], "questions.json", "entry 1: has neither"),
    ([{"conversations": [{"from": "gpt", "value": "x"}]}], "questions.json", "conversations[0] is not"),
    ([{"conversations": [{"from": "human", "value": 3}]}], "questions.json", "conversations[0] is not"),
    ([entry("<image>\nx")], "questions.json", "names no image"),
    ([entry("<image> <image>", image="a.png")], "questions.json", "more than once"),
    ([entry("x", "<image>", image="a.png")], "questions.json", "an answer has <image>"),
    ([entry(image="missing.png")], "questions.json", "there is no image"),
    ([entry(image=["a.png", "b.png"])], "questions.json", "not the name of one file"),
    ("an <image> here", "t.txt", "text 1: has <image>"),
    ("\n \n", "t.txt", "holds no samples"),
]


@pytest.mark.parametrize(("content", "name", "message"), MALFORMED)
def test_what_is_malformed_is_named(tmp_path: Path, content: object, name: str, message: str) -> None:
    (tmp_path / "a.png").touch()
    path = write(tmp_path, content, name)
    with pytest.raises(CalibrationError) as error:
        read_samples(path, tmp_path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_bad_requests(tmp_path: Path) -> None:
    path = write(tmp_path, [entry(image="a.png")])
    with pytest.raises(UsageError, match="`images`"):
        read_samples(path)
    with pytest.raises(UsageError, match="at least one"):
        read_samples(path, num_samples=0)
    with pytest.raises(StorageError, match="cannot be read"):
        read_samples(tmp_path / "nowhere.json")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CalibrationError, match="not UTF-8 at byte 3"):
        read_samples(tmp_path / "latin.txt")


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no picture")
    data = read_samples(write(tmp_path, [entry(image="a.png")]), tmp_path)
    with pytest.raises(CalibrationError, match=r"entry 1: .*a\.png cannot be read as an image"):
        make_inputs(Checkpoint.open(MINI_LLAVA), data.samples)


def test_inputs_are_what_the_stock_model_computes_with(mini_llava: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    from s4convert.model.front_end import load_processor

    model, processor = (
        LlavaForConditionalGeneration.from_pretrained(mini_llava).float().eval(),
        load_processor(mini_llava),
    )
    samples = read_samples(QUESTIONS / "questions.json", QUESTIONS).samples
    for sample, inputs in zip(samples, make_inputs(Checkpoint.open(mini_llava), samples), strict=True):
        image = None if sample.image is None else Image.open(sample.image).convert("RGB")
        stock = processor(text=sample.text, images=image, return_tensors="pt")
        with torch.inference_mode():
            embeddings = model(**stock, output_hidden_states=True).hidden_states[0]
        assert torch.equal(inputs.hidden, embeddings)
        assert int(inputs.is_image.sum()) == (16 if image is not None else 0)
        text = model.get_input_embeddings().weight.detach()
        is_text = (embeddings[0][:, None] == text[None]).all(-1).any(-1)
        assert torch.equal(inputs.is_image, ~is_text)


def test_the_original_layout_sees_the_same_image(original_layout: Path, tmp_path: Path) -> None:
    tall = Image.effect_noise((30, 50), 80).convert("RGB")
    square = Image.effect_noise((56, 56), 80).convert("RGB")
    front_ends = HuggingFaceFrontEnd(Checkpoint.open(MINI_LLAVA)), OriginalFrontEnd(Checkpoint.open(original_layout))
    text = "USER: <image>\nWhich? ASSISTANT: A</s>"
    (one, is_image), (other, other_is_image) = (front_end(text, square) for front_end in front_ends)
    assert torch.equal(one[0][is_image], other[0][other_is_image])
    # Tokenizers of transformers 5 begin a text, and what follows a special token, in two ways in the two layouts.
    words = "USER: Which? ASSISTANT: A</s>USER: x"
    if torch.equal(front_ends[0](words)[0], front_ends[1](words)[0]):
        assert torch.equal(one, other) and torch.equal(is_image, other_is_image)

    # What is not square is padded with the processor's mean colour, as original LLaVA does.
    padded = Image.new("RGB", (50, 50), (122, 116, 104))
    padded.paste(tall, (10, 0))
    assert torch.equal(front_ends[1](text, tall)[0], front_ends[1](text, padded)[0])
    config = json.loads((original_layout / "config.json").read_text())
    (original_layout / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": None}))
    assert not torch.equal(
        OriginalFrontEnd(Checkpoint.open(original_layout))(text, tall)[0], front_ends[1](text, tall)[0]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "which is not at hand"),
        ({"mm_vision_tower": None}, "which is not at hand"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True"),
        ({"mm_projector_type": "resampler"}, "projector 'resampler'"),
        ({"mm_projector_type": "mlp3x_gelu"}, r"has no model\.mm_projector\.4\.weight"),
        ({"mm_vision_select_layer": None}, "has no mm_vision_select_layer"),
    ],
)
def test_images_are_refused_in_words(original_layout: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((original_layout / "config.json").read_text())
    (original_layout / "config.json").write_text(json.dumps(config | change))
    checkpoint = Checkpoint.open(original_layout)
    with pytest.raises(CheckpointError, match=message) as error:
        open_front_end(checkpoint, with_images=True)
    assert "\n" not in str(error.value)
    make_inputs(checkpoint, [Sample("words", None, "here")])  # text needs no tower


def test_a_linear_projector(original_layout: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(original_layout / "model.safetensors")
    for part in ("weight", "bias"):
        del tensors[f"model.mm_projector.2.{part}"]
        tensors[f"model.mm_projector.{part}"] = tensors.pop(f"model.mm_projector.0.{part}")
    save_file(tensors, original_layout / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((original_layout / "config.json").read_text())
    (original_layout / "config.json").write_text(json.dumps(config | {"mm_projector_type": "linear"}))
    hidden, is_image = OriginalFrontEnd(Checkpoint.open(original_layout))("<image>", Image.new("RGB", (56, 56)))
    assert hidden.shape[1:] == (17, 128) and int(is_image.sum()) == 16


def test_a_token_beyond_the_table_is_an_error(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec(layout=ORIGINAL)))
    assert embed(checkpoint, [0, 31, 0]).shape == (1, 3, 8)
    for token in (32, -1):
        with pytest.raises(CheckpointError, match=f"token {token} is beyond model.embed_tokens.weight"):
            embed(checkpoint, [0, token])


def test_without_a_tokenizer_the_refusal_is_one_line(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "checkpoint", Spec()))
    for with_images in (False, True):
        with pytest.raises(CheckpointError) as error:
            open_front_end(checkpoint, with_images=with_images)
        files = "tokenizer.json, tokenizer.model, vocab.json"
        assert str(error.value) == (
            f"{checkpoint.path}: the tokenizer cannot be used by stock code (none of {files} is there); "
            "restore its files"
        )


def test_the_front_end_holds_no_vocabulary(mini_llava_as: Callable[..., Path]) -> None:
    front_end = HuggingFaceFrontEnd(Checkpoint.open(mini_llava_as(torch.float16)))
    sizes = {name: tuple(p.shape) for name, p in front_end._model.named_parameters()}
    assert not any(642 in shape for shape in sizes.values())
    assert not any("embed_tokens" in name for name in sizes)
    assert all(p.dtype == torch.float32 for p in front_end._model.parameters())


def test_what_is_too_long_is_cut_and_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seams.cut_samples_at(monkeypatch, 5)
    with caplog.at_level(logging.WARNING):
        (inputs,) = make_inputs(Checkpoint.open(MINI_LLAVA), [Sample("many words in one text", None, "here")])
    assert inputs.hidden.shape[1] == len(inputs.is_image) == 5
    assert "1 of 1 samples are longer than 5 tokens" in caplog.text


def test_errors_are_of_the_tree() -> None:
    assert issubclass(CalibrationError, S4ConvertError) and CalibrationError.exit_code == 2
