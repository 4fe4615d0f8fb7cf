"""The vision tower of original LLaVA-1.5 checkpoints, which their config names on the Hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s4convert.demo import MINI_LLAVA, QUESTIONS
from tests.hub.client_process import ClientProcess
from tests.hub.commands import CommandLine, contents
from tests.hub.server import LoopbackHub
from tests.hub.test_download import downloaded
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests

TOWER = "openai/clip-vit-large-patch14-336"
DATA = ("--calibration", QUESTIONS / "questions.json", "--images", QUESTIONS, "--num-samples", "2")
WITH_IMAGES = "probe: 3 text prompts, 2 image prompts"
TEXT_ALONE = "probe: 3 text prompts (no images: the vision tower is not at hand)"
NOT_AT_HAND = (
    f"mm_vision_tower is '{TOWER}', which is not at hand, and images need it; name a directory, or a repository on the "
    "Hub, with --vision-tower"
)


def write_as_released(directory: Path) -> Path:
    """The mini LLaVA as LLaVA-1.5 was released: ``.bin`` shards, and a config that names the tower on the Hub.

    ``tower`` beside it is what stands there: a whole CLIP, with weights for torch and for others.
    """
    import torch
    from safetensors.torch import load_file

    from tests.support.original_layout import write_original_layout

    path, tower = directory / "llava-v1.5-mini", directory / "tower"
    write_original_layout(MINI_LLAVA, path, tower, num_shards=2)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"mm_vision_tower": TOWER}, indent=2))
    index_file = path / "model.safetensors.index.json"
    index = index_file.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
    (path / "pytorch_model.bin.index.json").write_text(index)
    index_file.unlink()
    for shard in path.glob("*.safetensors"):
        torch.save(load_file(shard), path / f"pytorch_{shard.stem}.bin")
        shard.unlink()

    vision = load_file(tower / "model.safetensors")
    (tower / "model.safetensors").unlink()
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}  # which old versions stored
    torch.save(vision | positions | {"logit_scale": torch.tensor(4.6)}, tower / "pytorch_model.bin")
    vision_config = json.loads((tower / "config.json").read_text())
    clip = {"architectures": ["CLIPModel"], "model_type": "clip", "text_config": {}, "vision_config": vision_config}
    (tower / "config.json").write_text(json.dumps(clip | {"projection_dim": 8}))
    for name in ("tf_model.h5", "flax_model.msgpack", "vocab.json", "README.md"):
        (tower / name).write_bytes(b"not wanted")
    (directory / "mask.json").write_text(json.dumps({"pruned_heads": {"1": [0, 2], "5": [3]}}))
    return path


@pytest.fixture(scope="module")
def released(client_process: ClientProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, which no test may write to; ``tower`` and ``mask.json`` lie beside it."""
    return Path(client_process.call(write_as_released, tmp_path_factory.mktemp("released")))


@pytest.fixture
def tower(hub: LoopbackHub, released: Path) -> dict[str, bytes]:
    """The files of the tower, which stands on the Hub."""
    files = contents(released.parent / "tower")
    hub.create_repo(TOWER)
    hub.commit(TOWER, files)
    return files


def convert(s4convert: CommandLine, released: Path, out: Path, *options: object) -> Outcome:
    return s4convert(released, out, "--mask", released.parent / "mask.json", "--no-card", *options)


def calibrated(s4convert: CommandLine, released: Path, out: Path, *options: object) -> Outcome:
    return convert(s4convert, released, out, "--compensate", "head-ls", *DATA, *options)


def test_calibration_fetches_it_uses_the_cache_offline_and_takes_another(
    released: Path, tower: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    outcome = calibrated(s4convert, released, tmp_path / "llava-v1.5-a")
    assert outcome.exit_code == 0, outcome.stderr
    assert downloaded(hub) == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}
    assert outcome.stdout.startswith(WITH_IMAGES)
    assert (tmp_path / "llava-v1.5-a" / "config.json").read_bytes() == (released / "config.json").read_bytes()

    hub.requests.clear()
    offline = calibrated(s4convert.under(HF_HUB_OFFLINE="1"), released, tmp_path / "llava-v1.5-b")
    elsewhere = s4convert.under(HF_HOME=str(tmp_path / "empty"))
    given = calibrated(elsewhere, released, tmp_path / "llava-v1.5-c", "--vision-tower", released.parent / "tower")
    for one in (offline, given):
        assert one.exit_code == 0, one.stderr
        assert one.stdout.startswith(WITH_IMAGES)
    assert hub.requests == []
    written = [digests(tmp_path / f"llava-v1.5-{letter}") for letter in "abc"]
    assert all(one == written[0] for one in written)


def test_a_conversion_without_images_takes_it_from_the_cache_and_fetches_it_only_if_asked(
    released: Path, tower: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    out = tmp_path / "llava-v1.5-out"
    outcome = convert(s4convert, released, out)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.startswith(TEXT_ALONE)
    weaker = f"{NOT_AT_HAND}; the probe is of text alone, and shows less than images do"
    assert f"s4convert: {released / 'config.json'}: {weaker}\n" in outcome.stderr
    assert outcome.stdout.splitlines()[-2].endswith("; the probe had no images")
    assert hub.requests == []

    asked = s4convert("verify", released, out, "--vision-tower", TOWER)
    assert asked.exit_code == 0, asked.stderr
    assert "pytorch_model.bin" in downloaded(hub)
    hub.requests.clear()
    cached = s4convert("verify", released, out)
    assert cached.exit_code == 0, cached.stderr
    for one in (asked, cached):
        assert one.stdout.startswith(WITH_IMAGES)
        assert "no images" not in one.stderr
    assert hub.requests == []


def test_a_mask_by_cross_attention_sees_images_through_it(
    released: Path, tower: dict[str, bytes], tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("lab/tower")
    # Where there are safetensors, no other weights come.
    hub.commit("lab/tower", {**tower, "config.json": b"{}", "model.safetensors": b"x", "pytorch_model.bin": b"x"})
    options = ("--metric", "cross-attention", "--schedule", "uniform", "--rate", "0.25", *DATA)
    outcome = s4convert("mask", released, "-o", tmp_path / "mask.json", *options)
    assert outcome.exit_code == 0, outcome.stderr
    asked = len(hub.requests)
    again = s4convert("mask", released, "-o", tmp_path / "again.json", *options)
    assert again.exit_code == 0 and len(hub.requests) == asked  # what the cache holds is not asked for
    assert digests(tmp_path)["again.json"] == digests(tmp_path)["mask.json"]
    refused = s4convert("mask", released, "-o", tmp_path / "no.json", *options, "--vision-tower", "lab/tower@main")
    assert refused.exit_code == 2
    assert "is of model_type None, and only CLIP towers are supported" in refused.error
    assert downloaded(hub) == {
        "config.json", "preprocessor_config.json", "pytorch_model.bin", "model.safetensors"
    }  # fmt: skip
    assert not (tmp_path / "no.json").exists()


def test_where_images_need_it_and_it_cannot_be_had_one_line_says_so(
    released: Path, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    out, needed = tmp_path / "llava-v1.5-out", "images need this vision tower, or another that --vision-tower names"
    hub.create_repo("lab/empty")
    hub.commit("lab/empty", {"config.json": b"{}"})
    given = ("--vision-tower", "lab/empty")
    offline = s4convert.under(HF_HUB_OFFLINE="1")
    absent = "no such repository on the Hub, or a private one that your token may not read"
    for command, options, exit_code, message in [
        (offline, (), 4, f"{TOWER}: is not in the cache, and HF_HUB_OFFLINE is set ({needed})"),
        (s4convert, (), 4, f"{TOWER}: {absent} ({needed})"),
        (s4convert, given, 2, "lab/empty: has no preprocessor_config.json, and a vision tower needs it; name another"),
    ]:
        outcome = calibrated(command, released, out, *options)
        assert outcome.exit_code == exit_code
        assert outcome.error.startswith(message)
    assert not out.exists()


def test_a_tower_that_is_given_must_be_one_even_where_no_image_is_needed(
    released: Path, tmp_path: Path, s4convert: CommandLine
) -> None:
    import torch

    out, torso = tmp_path / "llava-v1.5-out", tmp_path / "torso"
    torso.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (torso / name).write_bytes((released.parent / "tower" / name).read_bytes())
    weights = torch.load(released.parent / "tower" / "pytorch_model.bin")
    weights["spare"] = weights.pop("vision_model.post_layernorm.weight")
    torch.save(weights, torso / "pytorch_model.bin")
    for given, message in [
        (tmp_path / "nowhere", "nowhere: is neither a directory nor a name on the Hub; give one of the two"),
        (torso, "torso: the vision tower has no weights for "),
    ]:
        outcome = convert(s4convert, released, out, "--vision-tower", given)
        assert outcome.exit_code == 2
        assert message in outcome.error
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("IN", "OUT", "--mask", "MASK", "--no-verify"), "is for calibration and hidden states, and here is neither"),
        (("IN", "OUT", "--mask", "MASK"), "is not in LLaVA's original layout, which alone has its vision tower"),
        (
            ("mask", "IN", "-o", "MADE", "--metric", "random", "--schedule", "uniform", "--rate", "0.3"),
            "--vision-tower is about calibration data; give it with --calibration",
        ),
    ],
)
def test_the_option_is_refused_where_it_means_nothing(
    released: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    places = {"IN": MINI_LLAVA, "MASK": released.parent / "mask.json"}
    names = [places.get(word, tmp_path / word if word.isupper() else word) for word in arguments]
    outcome = run_here(*names, "--vision-tower", released.parent / "tower")
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert list(tmp_path.iterdir()) == []
