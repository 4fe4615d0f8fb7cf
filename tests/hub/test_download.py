"""IN from the Hub: what is downloaded, what is recorded, and that the cache is only read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from s4convert.output.card import CARD_FILES
from tests.hub.client_process import NEW_CLIENT, ClientProcess
from tests.hub.commands import PRUNED, SPEC, CommandLine, contents, written
from tests.hub.server import LoopbackHub
from tests.support import synthetic
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests, snapshot
from tests.support.synthetic import Spec, write_checkpoint


@pytest.fixture
def files(converted: Path) -> dict[str, bytes]:
    """The files of the original, by name."""
    return contents(converted.parent / "in")


def convert(s4convert: Callable[..., Outcome], source: str, out: Path, *options: object) -> Outcome:
    """Convert *source* by the usual mask, without hidden states and without a card, which names the source."""
    mask = out.parent / "mask.json"
    mask.write_text(json.dumps(PRUNED))
    return s4convert(source, out, "--mask", mask, "--no-verify", "--no-card", *options)


def stated(out: Path) -> dict[str, Any]:
    """The manifest of *out* as it is where no card was asked for."""
    manifest = json.loads((out / "s4convert.json").read_text())
    files = {name: file for name, file in manifest["files"].items() if name not in CARD_FILES}
    return {name: said for name, said in manifest.items() if name != "command"} | {"card": [], "files": files}


def downloaded(hub: LoopbackHub) -> set[str]:
    """The files that the client asked for; of large ones, it asks where they are."""
    matches = [re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)", request.path) for request in hub.requests]
    return {unquote(match[1]) for match in matches if match}


# --- what comes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["lab/original", "lab/original@main", "hf://lab/original", "lab/original@v1"])
def test_out_is_what_the_same_files_on_the_disk_give(
    converted: Path,
    files: dict[str, bytes],
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    source: str,
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit("lab/original", files, "v1" if source.endswith("v1") else "main")
    outcome = convert(s4convert, source, tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert written(tmp_path / "out") == written(converted)
    assert stated(tmp_path / "out") == {**stated(converted), "source": f"lab/original@{commit}"}


def test_a_commit_is_recorded_where_a_commit_is_given(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit("lab/original", files)
    hub.commit("lab/original", {"config.json": b"{}"})
    assert convert(s4convert, f"lab/original@{commit}", tmp_path / "out").exit_code == 0
    assert json.loads((tmp_path / "out" / "s4convert.json").read_text())["source"] == f"lab/original@{commit}"


def test_only_what_is_needed_comes(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    others = {
        *("pytorch_model.bin", "model.fp16.safetensors", "model.gguf", "tf_model.h5", "optimizer.pt", "onnx/m.onnx"),
        *("training_args.bin", "checkpoint-10/model.safetensors", "checkpoint-10/trainer_state.json", ".cache/x.json"),
    }
    part = {"tower/config.json": b'{"model_type": "clip"}', "tower/model.safetensors": b"not looked at"}
    earlier = {"checkpoint-10/config.json": files["config.json"]}
    hub.create_repo("lab/original")
    hub.commit("lab/original", files | part | earlier | dict.fromkeys(others, b"not wanted"))
    outcome = convert(s4convert, "lab/original", tmp_path / "out")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr.count("\n") == 1  # how the mask was read; nothing is left behind that came
    wanted = files.keys() | part.keys()
    # Which folder holds another model, its config says.
    assert downloaded(hub) == wanted | {"checkpoint-10/config.json"}
    assert digests(tmp_path / "out").keys() == wanted | {"s4convert.json"}


def test_what_else_the_cache_holds_makes_no_difference(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit(
        "lab/original", files | {"checkpoint-10/model.safetensors": b"x", "checkpoint-10/a.json": b"{}"}
    )
    assert convert(s4convert, "lab/original", tmp_path / "out").exit_code == 0
    snapshots = s4convert.home / "hub" / "models--lab--original" / "snapshots"
    (snapshots / commit / "checkpoint-10").mkdir()
    for name in ("a.json", "model.safetensors"):
        (snapshots / commit / "checkpoint-10" / name).write_bytes(b"{}")
    assert convert(s4convert, "lab/original", tmp_path / "again").exit_code == 0
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def write_torch_checkpoint(path: Path) -> Path:
    from tests import test_torch_checkpoints  # which imports torch

    return test_torch_checkpoints.write_torch_checkpoint(path, SPEC)


def test_torch_weights_come_with_their_index_where_there_are_no_others(
    tmp_path: Path, hub: LoopbackHub, client: ClientProcess, s4convert: CommandLine
) -> None:
    torch = Path(client.call(write_torch_checkpoint, tmp_path / "torch"))
    hub.create_repo("lab/torch")
    hub.commit("lab/torch", contents(torch) | {"model.gguf": b"not wanted"})
    assert convert(s4convert, "lab/torch", tmp_path / "out").exit_code == 0
    assert downloaded(hub) == digests(torch).keys()


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("lab/model", {"README.md"}, "lab/model: has no config.json; give the directory of a checkpoint"),
        ("lab/model", {"config.json"}, "lab/model: has none of model.safetensors, "),
        ("lab/model", {"config.json", "model.gguf"}, "lab/model/model.gguf: is GGUF; "),
        ("lab/model", {"config.json", "tf_model.h5"}, "lab/model/tf_model.h5: is a TensorFlow checkpoint; "),
        (
            "lab/model",
            {"config.json", "model_fp16.safetensors"},
            "lab/model/model_fp16.safetensors: is under a name that",
        ),
        (
            "lab/model",
            {"config.json", "adapter_model.safetensors"},
            "lab/model/adapter_model.safetensors: is a LoRA adapter; ",
        ),
        ("lab/llava-delta-v1", {"config.json", "model.safetensors"}, "lab/llava-delta-v1: is named as a delta is; "),
        ("lab/model", {"config.json", "model.safetensors", "model.safetensors.index.json"}, "lab/model: has both "),
        (
            "lab/model",
            {"config.json", "model.safetensors", "quant_config.json"},
            "lab/model/quant_config.json: the weights are quantised; ",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_before_its_weights_come(
    files: dict[str, bytes],
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    name: str,
    names: set[str],
    message: str,
) -> None:
    hub.create_repo(name)
    hub.commit(name, {file: files.get(file, b"{}") for file in names})
    outcome = convert(s4convert, name, tmp_path / "out")
    assert outcome.exit_code == 2
    assert outcome.error.startswith(message)
    assert downloaded(hub) == ({"config.json"} if "quant_config.json" in names else set())


def test_an_unknown_model_is_refused_by_its_config_alone(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/model")
    hub.commit("lab/model", files | {"config.json": b'{"model_type": "gpt2"}'})
    outcome = convert(s4convert, "lab/model", tmp_path / "out")
    assert outcome.exit_code == 2
    assert outcome.error.startswith("lab/model/config.json: model_type 'gpt2' is not one this tool knows")
    assert downloaded(hub) == {"config.json"}


def test_an_index_that_names_a_missing_shard_is_refused(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    del files["model-00002-of-00002.safetensors"]
    hub.create_repo("lab/model")
    hub.commit("lab/model", files)
    outcome = convert(s4convert, "lab/model", tmp_path / "out")
    assert outcome.exit_code == 2
    assert "model.safetensors.index.json names model-00002-of-00002.safetensors, which is missing" in outcome.error
    assert downloaded(hub) == {"config.json", "model.safetensors.index.json"}


# --- the cache ------------------------------------------------------------------------------------------------


def test_the_cache_is_only_read(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/original")
    hub.commit("lab/original", files)
    assert s4convert("inspect", "lab/original").exit_code == 0
    cache = s4convert.home / "hub" / "models--lab--original"
    before, blobs = snapshot(cache), digests(cache)
    offline = s4convert.under(HF_HUB_OFFLINE="1")  # so that the client has nothing to write
    assert convert(offline.run_alone, "lab/original", tmp_path / "out").exit_code == 0
    assert digests(cache) == blobs
    assert snapshot(cache) == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))


def test_a_second_run_downloads_nothing(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/original")
    hub.commit("lab/original", files)
    assert convert(s4convert, "lab/original", tmp_path / "out").exit_code == 0
    first = len(hub.requests)
    assert convert(s4convert, "lab/original", tmp_path / "again").exit_code == 0
    assert not any("/resolve/" in request.path for request in hub.requests[first:])
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


@pytest.mark.parametrize("source", ["lab/original", "lab/original@main"])
def test_offline_the_cache_is_used_and_its_commit_recorded(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine, source: str
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit("lab/original", files)
    assert convert(s4convert, "lab/original", tmp_path / "out").exit_code == 0
    hub.commit("lab/original", {"config.json": b"{}"})  # since then it has moved
    hub.requests.clear()
    for name in (source, f"lab/original@{commit}"):
        outcome = convert(s4convert.under(HF_HUB_OFFLINE="1"), name, tmp_path / "offline", "--force")
        assert outcome.exit_code == 0, outcome.stderr
        assert outcome.stderr.startswith(f"s4convert: lab/original@{commit}: taken from the cache as it stands there\n")
        assert digests(tmp_path / "offline") == digests(tmp_path / "out")
    assert hub.requests == []


NOTHING_IN_THE_CACHE = (
    "is not in the cache, and HF_HUB_OFFLINE is set (there is no directory of that name here); unset it and run again"
)
FILE_NOT_IN_THE_CACHE = "is not in the cache, and HF_HUB_OFFLINE is set; run once without it to download it"


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (None, NOTHING_IN_THE_CACHE),
        # The new client, asked for that file alone, says that it has nothing.
        ("config.json", NOTHING_IN_THE_CACHE if NEW_CLIENT else f"config.json {FILE_NOT_IN_THE_CACHE}"),
        ("model-00002-of-00002.safetensors", f"model-00002-of-00002.safetensors {FILE_NOT_IN_THE_CACHE}"),
    ],
)
def test_offline_what_the_cache_lacks_is_one_line(
    files: dict[str, bytes],
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    missing: str | None,
    message: str,
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit("lab/original", files)
    if missing is not None:
        assert s4convert("inspect", "lab/original").exit_code == 0
        snapshots = s4convert.home / "hub" / "models--lab--original" / "snapshots"
        (snapshots / commit / missing).unlink()
    outcome = convert(s4convert.under(HF_HUB_OFFLINE="1"), "lab/original", tmp_path / "out")
    assert outcome.exit_code == 4
    assert outcome.stderr == f"s4convert: error: lab/original: {message}\n"
    assert not (tmp_path / "out").exists()


# --- names ----------------------------------------------------------------------------------------------------


def test_a_directory_of_that_name_comes_first(
    converted: Path, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab").mkdir()
    shutil.copytree(converted.parent / "in", tmp_path / "lab" / "original")
    monkeypatch.chdir(tmp_path)
    assert run_here("inspect", "lab/original").exit_code == 0
    assert hub.requests == []


def test_masks_come_from_the_hub_as_well(
    files: dict[str, bytes], converted: Path, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/masks")
    commit = hub.commit("lab/masks", {"thirty/mask.json": json.dumps(PRUNED).encode()})
    mask = "lab/masks@main:thirty/mask.json"
    arguments = (converted.parent / "in", tmp_path / "out", "--mask", mask, "--no-verify", "--no-card")
    outcome = s4convert(*arguments)
    assert outcome.exit_code == 0, outcome.stderr
    how_read = "listed heads, listed = pruned, 2 of 12 heads"
    assert outcome.stderr == f"s4convert: lab/masks@{commit}:thirty/mask.json: {how_read}\n"
    assert written(tmp_path / "out") == written(converted)
    assert stated(tmp_path / "out") == stated(converted)


def test_a_file_too_large_for_a_mask_does_not_come(
    converted: Path, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/masks")
    hub.commit("lab/masks", {"mask.bin": bytes(64 * 2**20 + 1)})
    arguments = (converted.parent / "in", tmp_path / "out", "--mask", "lab/masks:mask.bin", "--no-verify")
    outcome = s4convert(*arguments)
    assert outcome.exit_code == 2
    assert outcome.error.startswith("lab/masks:mask.bin: 67,108,865 bytes are too many for a mask")
    assert downloaded(hub) == set()


def test_masks_are_made_of_checkpoints_on_the_hub(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit("lab/original", files)
    out = tmp_path / "mask.json"
    options = ("--metric", "magnitude", "--schedule", "uniform", "--rate", "0.3")
    assert s4convert("mask", "lab/original", "-o", out, *options).exit_code == 0
    assert json.loads(out.read_text())["provenance"]["source"] == f"lab/original@{commit}"


def test_the_name_that_stock_llava_goes_by_is_the_repositorys(
    tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    source = write_checkpoint(tmp_path / "in", Spec(num_layers=3, num_kv_heads=4, layout=synthetic.ORIGINAL))
    hub.create_repo("lab/llava-v1.5-7b")
    hub.commit("lab/llava-v1.5-7b", contents(source))
    outcome = convert(s4convert, "lab/llava-v1.5-7b", tmp_path / "out")
    assert outcome.exit_code == 2
    assert "name it llava-v1.5-7b-pruned, or insist with --allow-name" in outcome.error


def convert_in_python(out: Path) -> None:
    from s4convert import convert

    convert(Path("lab/original"), out, "lab/original:mask.json", check_behaviour=False, card=False)


def test_python_takes_the_same_names(
    files: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, client: ClientProcess, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/original")
    commit = hub.commit("lab/original", files | {"mask.json": json.dumps(PRUNED).encode()})
    client.call_under(s4convert.environment, convert_in_python, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "s4convert.json").read_text())
    assert manifest["source"] == f"lab/original@{commit}"
