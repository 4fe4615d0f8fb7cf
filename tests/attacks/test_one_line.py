"""What once ended as an internal error, or took all memory, ends in one line that says what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from s4convert.demo import MINI_LLAVA, QUESTIONS
from tests.support.command_line import Outcome, run_here
from tests.support.limits import GIB, limited
from tests.support.synthetic import read_safetensors

FIT = ("--compensate", "head-ls")


def change(path: Path, *where: str, **values: Any) -> None:
    content = part = json.loads(path.read_text())
    for name in where:
        part = part[name]
    part.update(values)
    path.write_text(json.dumps(content))


@pytest.fixture
def question_file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(json.loads((QUESTIONS / "questions.json").read_text())[:2]))
    return path


@pytest.fixture
def convert(tmp_path: Path, mini_llava: Path, mini_mask_file: Path) -> Callable[..., Outcome]:
    return lambda *options: run_here(mini_llava, tmp_path / "out", "--mask", mini_mask_file, *options)


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_tensor_too_large_for_the_memory_is_named(mini_llava: Path, tmp_path: Path, question_file: Path) -> None:
    """4 GiB of nothing, which take no room on the disk; 1 GiB of memory."""
    index, shard = mini_llava / "model.safetensors.index.json", sorted(mini_llava.glob("*.safetensors"))[-1]
    tensors, name = read_safetensors(shard), "vision_tower.vision_model.extra"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = sum(len(data) for _, _, data in tensors.values())
    for other, (dtype, shape, data) in tensors.items():
        begin = 0 if len(header) == 1 else max(entry["data_offsets"][1] for n, entry in header.items() if n[0] != "_")
        header[other] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + len(data)]}
    header[name] = {"dtype": "F32", "shape": [GIB], "data_offsets": [end, end + 4 * GIB]}
    text = json.dumps(header).encode()
    with shard.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))
        file.truncate(file.tell() + 4 * GIB)
    change(index, "weight_map", **{name: shard.name})
    arguments = ("--metric", "energy", "--schedule", "uniform", "--rate", 0.25)
    with limited(more_bytes=GIB, seconds=30):
        outcome = run_here(
            *("mask", mini_llava, "-o", tmp_path / "made.json", *arguments),
            *("--calibration", question_file, "--images", QUESTIONS),
        )
    assert outcome.exit_code == 3
    assert outcome.error == f"{shard}: {name}: not enough memory; free some, or use a larger machine"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "not enough memory; free some"),
        (MemoryError("Unable to allocate 12.0 GiB"), "(Unable to allocate 12.0 GiB)"),
    ],
    ids=["without a word", "with a size"],
)
def test_memory_that_is_short_anywhere_else_is_no_internal_error(
    convert: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, error: MemoryError, said: str
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("s4convert.jobs.convert.make_plan", fail)
    outcome = convert("--no-verify")
    assert outcome.exit_code == 3
    assert said in outcome.error


@pytest.mark.parametrize("said", ["DefaultCPUAllocator: can't allocate memory: 12 bytes", "CUDA out of memory."])
def test_torchs_own_error_is_told_with_what_was_too_large(
    convert: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def forward(*args: object, **kwargs: object) -> None:
        raise RuntimeError(f"{said}\nand more")

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward", forward)
    outcome = convert()
    assert outcome.exit_code == 3
    assert f"tokens: not enough memory ({said}); free some" in outcome.error


# --- config.json and what else makes the front end --------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [{"return_dict": False}, {"output_hidden_states": "x"}, {"use_cache": "x"}, {"output_attentions": True}],
    ids=lambda values: next(iter(values)),
)
def test_settings_of_how_a_model_is_run_do_not_matter(
    mini_llava: Path, convert: Callable[..., Outcome], values: dict[str, Any]
) -> None:
    for where in ((), ("text_config",)):
        change(mini_llava / "config.json", *where, **values)
    outcome = convert()
    assert outcome.exit_code == 0, outcome.stderr
    assert "probe: 3 text prompts, 2 image prompts" in outcome.stdout


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_a_number_of_the_config_that_is_none(mini_llava: Path, convert: Callable[..., Outcome], name: str) -> None:
    change(mini_llava / "config.json", "text_config", **{name: "\n"})
    outcome = convert()
    assert outcome.exit_code == 2, outcome.stderr
    assert f"config.json: {name} is '\\n', not a number; mend the config" in outcome.error


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("preprocessor_config.json", {"image_std": [0.5, 0.5]}),
        ("preprocessor_config.json", {"rescale_factor": {"": 0}}),
        ("preprocessor_config.json", {"crop_size": {"height": None, "width": [[]]}}),
    ],
)
def test_a_front_end_that_fails_on_a_sample_is_told_with_the_sample(
    mini_llava: Path, convert: Callable[..., Outcome], question_file: Path, file: str, values: dict[str, Any]
) -> None:
    change(mini_llava / file, **values)
    outcome = convert(*FIT, "--no-verify", "--calibration", str(question_file), "--images", str(QUESTIONS))
    assert outcome.exit_code == 2, outcome.stderr
    assert "the vision tower cannot be used by stock code (" in outcome.error


def test_what_is_written_past_python_does_not_reach_stdout(
    mini_llava: Path, convert: Callable[..., Outcome], capfd: pytest.CaptureFixture[str]
) -> None:
    token = {"content": "<s>", "special": True, "\x1b[31m": 1}
    change(mini_llava / "tokenizer_config.json", "added_tokens_decoder", **{"1": token})
    outcome = convert("--json")
    assert outcome.exit_code == 0, outcome.stderr
    assert json.loads(outcome.stdout)["behaviour"]["probe"] == "3 text prompts, 2 image prompts"
    assert capfd.readouterr() == ("", "")


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compensation", "factors", "message"),
    [
        ([], None, "compensation [] is not known to this version"),
        ({}, None, "compensation {} is not known to this version"),
        ("head-ls", 10**400, "its fitted factors are malformed; convert the original again"),
        ("head-ls", 10**300, "its fitted factors"),
    ],
)
def test_a_manifest_that_states_nonsense(
    tmp_path: Path, convert: Callable[..., Outcome], compensation: Any, factors: Any, message: str
) -> None:
    assert convert("--no-verify").exit_code == 0
    fitted = {"2": {"mode": "head-ls", "damping": None, "factors": [factors] * (8 if factors == 10**400 else 7)}}
    change(tmp_path / "out" / "s4convert.json", compensation=compensation, fitted=fitted)
    outcome = run_here("verify", MINI_LLAVA, tmp_path / "out")
    assert outcome.exit_code == 2, outcome.stderr
    assert message in outcome.error


# --- masks and scores -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype", "ignore:.*quantized tensor creation")
@pytest.mark.parametrize("kind", ["nested", "bits8", "quantised", "complex", "meta", "sparse"])
def test_a_tensor_that_is_no_plain_one_is_no_mask(mini_llava: Path, tmp_path: Path, kind: str) -> None:
    flags = torch.zeros(8, 8)
    tensor: torch.Tensor = {
        "nested": lambda: torch.nested.nested_tensor([torch.zeros(8)] * 8),
        "bits8": lambda: flags.to(torch.uint8).view(torch.bits8),
        "quantised": lambda: torch.quantize_per_tensor(flags, 1.0, 0, torch.quint8),
        "complex": lambda: flags.to(torch.complex64),
        "meta": lambda: flags.to("meta"),
        "sparse": flags.to_sparse,
    }[kind]()
    torch.save(tensor, tmp_path / "mask.pt")
    arguments = (tmp_path / "out", "--mask", tmp_path / "mask.pt", "--mask-polarity", "prune", "--no-verify")
    outcome = run_here(mini_llava, *arguments)
    assert outcome.exit_code == 2, outcome.stderr
    assert "mask.pt: " in outcome.error
    assert "tensor" in outcome.error


def test_numbers_that_are_not_json_in_two_ways(mini_llava: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.json"
    mask.write_text('{"pruned_heads": {"1": [1e400, -0]}}')
    for arguments in ((mini_llava, tmp_path / "out", "--mask", mask), ("inspect", mask)):
        outcome = run_here(*arguments)
        assert outcome.exit_code == 2, outcome.stderr
        assert "is not JSON ('1e400' is too large for a float)" in outcome.error


# --- calibration ------------------------------------------------------------------------------------------------------


def test_half_a_character_in_a_question(convert: Callable[..., Outcome], question_file: Path) -> None:
    questions = json.loads(question_file.read_text())
    questions[1]["conversations"][0]["value"] += "\ud800"
    question_file.write_text(json.dumps(questions))
    outcome = convert(*FIT, "--calibration", str(question_file), "--images", str(QUESTIONS))
    assert outcome.exit_code == 2
    assert "questions.json: entry 2" in outcome.error
    assert outcome.error.endswith("has half a character (a lone surrogate) in its text; mend it")


@pytest.mark.parametrize("device", ["meta", "mps", "xla", "nowhere"])
def test_a_device_where_no_model_runs(convert: Callable[..., Outcome], question_file: Path, device: str) -> None:
    outcome = convert(*FIT, "--calibration", str(question_file), "--images", str(QUESTIONS), "--device", device)
    assert outcome.exit_code == 2, outcome.stderr
    assert f"--device {device}: " in outcome.error
    assert outcome.error.endswith("use cpu or cuda")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("of-the-mini")
    (directory / "texts.txt").write_text("Two words.\nThree more words.\n")
    (directory / "mask.json").write_text('{"pruned_heads": {"0": [1]}}')
    arguments = (MINI_LLAVA, directory / "out", "--mask", directory / "mask.json", *FIT, "--no-verify")
    made = run_here(*arguments, "--calibration", directory / "texts.txt", "--save-statistics", directory / "kept")
    assert made.exit_code == 0, made.stderr
    return directory


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tensors: tensors.pop("train.text.num_tokens"),
        lambda tensors: tensors.pop("train.text.mean"),
        lambda tensors: tensors.update({"train.text.num_tokens": np.array([], np.int64)}),
        lambda tensors: tensors.update({"train.text.mean": tensors["train.text.mean"][:-1]}),
        lambda tensors: tensors.update({"train.text.second": tensors["train.text.second"][:-1]}),
        lambda tensors: tensors.update({"train.text.mean": np.array(1.0)}),
        lambda tensors: tensors.update({"train.text.mean": tensors["train.text.mean"].astype(np.float32)}),
        lambda tensors: tensors.update({"train.text.num_tokens": np.array([-5])}),
    ],
)
def test_statistics_of_a_layer_that_lack_a_part(statistics: Path, tmp_path: Path, spoil: Callable[..., object]) -> None:
    kept = Path(shutil.copytree(statistics / "kept", tmp_path / "kept"))
    tensors = load_file(kept / "layer-00000.safetensors")
    spoil(tensors)
    save_file(tensors, kept / "layer-00000.safetensors")
    arguments = (MINI_LLAVA, tmp_path / "out", "--mask", statistics / "mask.json", *FIT, "--no-verify")
    outcome = run_here(*arguments, "--statistics", kept)
    assert outcome.exit_code == 2, outcome.stderr
    assert "layer-00000.safetensors: is malformed (" in outcome.error
    assert outcome.error.endswith("); gather the statistics again")


@pytest.mark.parametrize("field", ["num_layers", "num_heads", "hidden_size"])
def test_a_description_of_statistics_without_its_sizes(statistics: Path, tmp_path: Path, field: str) -> None:
    kept = Path(shutil.copytree(statistics / "kept", tmp_path / "kept"))
    (kept / "layer-x.safetensors").touch()
    assert run_here("inspect", kept).exit_code == 0
    change(kept / "statistics.json", **{field: []})
    outcome = run_here("inspect", kept)
    assert outcome.exit_code == 2, outcome.stderr
    assert f"statistics.json: {field} is [], not a number; gather them again" in outcome.error
