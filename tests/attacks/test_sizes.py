"""Small files that ask for gigabytes or for hours: they are refused, or it does not matter, within 1 GiB and 30 s."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

from s4convert.checkpoint import Checkpoint
from s4convert.model.front_end import open_front_end
from s4convert.verify.probe import make_probe
from tests.conftest import MINI_LLAVA
from tests.support.command_line import Outcome, run_here
from tests.support.limits import GIB, limited
from tests.support.original_layout import write_original_layout

LIMITS: Any = {"more_bytes": GIB, "seconds": 30.0}
OLD = Version(transformers.__version__) < Version("5")


@pytest.fixture(scope="module")
def imported() -> None:
    """What is imported, and kept, counts for no case."""
    make_probe(Checkpoint.open(MINI_LLAVA))


@pytest.fixture
def convert(imported: None, mini_llava: Path, tmp_path: Path, mini_mask_file: Path) -> Callable[..., Outcome]:
    """Converts the mini LLaVA under the limits; a peak above them or a longer time fails."""

    def run(*options: str) -> Outcome:
        with limited(**LIMITS):
            return run_here(mini_llava, tmp_path / "out", "--mask", mini_mask_file, *options)

    return run


def change(path: Path, *where: str, **values: Any) -> None:
    """Set *values* in the object at *where* in the JSON file *path*."""
    content = part = json.loads(path.read_text())
    for name in where:
        part = part[name]
    part.update(values)
    path.write_text(json.dumps(content))


# --- config.json ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [(), ("text_config",), ("vision_config",)], ids=lambda part: "".join(part) or "top")
def test_three_million_labels_do_not_matter(
    mini_llava: Path, convert: Callable[..., Outcome], part: tuple[str, ...]
) -> None:
    change(mini_llava / "config.json", *part, num_labels=3_000_000)
    outcome = convert()
    assert outcome.exit_code == 0, outcome.stderr
    assert "probe: 3 text prompts, 2 image prompts" in outcome.stdout


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"intermediate_size": 50_000_000}, "layer 0: mlp.gate_proj.weight has shape [344, 128]; stock"),
        ({"num_hidden_layers": 10**59}, "layers, but there are only 134 tensors"),
        ({"hidden_size": 10**59}, "has shape [128, 128], but config.json asks for"),
    ],
    ids=["intermediate_size", "num_hidden_layers", "hidden_size"],
)
def test_a_language_model_larger_than_what_is_stored_is_refused(
    mini_llava: Path, convert: Callable[..., Outcome], values: dict[str, Any], message: str
) -> None:
    change(mini_llava / "config.json", "text_config", **values)
    outcome = convert()
    assert outcome.exit_code == 2, outcome.stderr
    assert message in outcome.error


def test_tables_for_more_positions_than_any_model_has_are_refused_where_stock_code_makes_them(
    mini_llava: Path, convert: Callable[..., Outcome]
) -> None:
    change(mini_llava / "config.json", "text_config", max_position_embeddings=10**12)
    outcome = convert()
    assert outcome.exit_code == (2 if OLD else 0), outcome.stderr
    if OLD:
        assert "mend max_position_embeddings" in outcome.error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 10**59}, "layers by its num_hidden_layers, but there are only"),
        ({"intermediate_size": 50_000_000}, "config.json: asks for a vision tower and a projector of"),
        ({"image_size": 14_000_000}, "config.json: asks for a vision tower and a projector of"),
    ],
    ids=["num_hidden_layers", "intermediate_size", "image_size"],
)
def test_a_vision_tower_larger_than_what_is_stored_is_refused(
    mini_llava: Path, convert: Callable[..., Outcome], values: dict[str, Any], message: str
) -> None:
    change(mini_llava / "config.json", "vision_config", **values)
    outcome = convert()
    assert outcome.exit_code == 2, outcome.stderr
    assert message in outcome.error


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**59}, {"intermediate_size": 50_000_000}], ids="-".join)
def test_the_tower_of_an_original_checkpoint_is_held_to_its_weights_as_well(
    mini_llava: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    write_original_layout(mini_llava, tmp_path / "llava", tmp_path / "tower")
    change(tmp_path / "tower" / "config.json", **values)
    with limited(**LIMITS), pytest.raises(Exception, match="mend the config") as caught:
        open_front_end(Checkpoint.open(tmp_path / "llava"), with_images=True)
    assert type(caught.value).__name__ == "CheckpointError"


# --- what makes images and texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"shortest_edge": 20_000}},
        {"crop_size": {"height": 20_000, "width": 20_000}},
        {"size": {"height": 20_000, "width": 20_000}},
    ],
    ids=["shortest edge", "crop", "sides"],
)
def test_a_preprocessor_of_huge_images_is_refused(
    mini_llava: Path, convert: Callable[..., Outcome], values: dict[str, Any]
) -> None:
    change(mini_llava / "preprocessor_config.json", **values)
    outcome = convert()
    assert outcome.exit_code == 2, outcome.stderr
    assert "of the image processor is 20,000 pixels, but the vision tower takes images of 56" in outcome.error


@pytest.mark.skipif(OLD, reason="its processor has none of these")
@pytest.mark.parametrize("values", [{"num_additional_image_tokens": 10**9}, {"patch_size": 1}], ids="-".join)
def test_a_processor_of_a_billion_tokens_is_refused(
    mini_llava: Path, convert: Callable[..., Outcome], values: dict[str, Any]
) -> None:
    change(mini_llava / "processor_config.json", **values)
    outcome = convert()
    assert outcome.exit_code == 2, outcome.stderr
    assert "mend processor_config.json" in outcome.error


def test_sizes_and_paddings_among_the_tokenizers_settings_do_not_matter(
    mini_llava: Path, convert: Callable[..., Outcome]
) -> None:
    size = {"height": 20_000, "width": 20_000}
    change(mini_llava / "tokenizer_config.json", crop_size=size, size=size, padding="max_length", max_length=10**9)
    outcome = convert()
    assert outcome.exit_code == 0, outcome.stderr
    assert "probe: 3 text prompts, 2 image prompts" in outcome.stdout


# --- .bin files -------------------------------------------------------------------------------------------------------


def deflated(num_blocks: int) -> bytes:
    """A deflate stream of zeros, *num_blocks* times a MiB."""
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    block = stream.compress(bytes(1 << 20)) + stream.flush(zlib.Z_FULL_FLUSH)
    return block * num_blocks + stream.flush()


DEFLATED = deflated(12 * 1024)


@pytest.fixture
def weights(mini_llava: Path) -> dict[str, torch.Tensor]:
    """The weights of the mini LLaVA, which has no files of them any more."""
    shards = sorted(mini_llava.glob("*.safetensors"))
    tensors = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    for path in (*shards, mini_llava / "model.safetensors.index.json"):
        path.unlink()
    return tensors


def test_a_tensor_that_repeats_what_is_stored_is_refused(
    mini_llava: Path, convert: Callable[..., Outcome], weights: dict[str, torch.Tensor]
) -> None:
    extra = torch.zeros(1).expand(3000, 1_000_000)
    torch.save(weights | {"extra": extra}, mini_llava / "pytorch_model.bin")
    outcome = convert("--no-verify")
    assert outcome.exit_code == 2, outcome.stderr
    assert (
        "extra repeats what is stored to 12,000,000,000 bytes, more than the file has; save a contiguous copy of it"
        in outcome.error
    )


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "byteorder", ".data/serialization_id"])
def test_a_compressed_member_of_any_name_is_refused(
    mini_llava: Path, convert: Callable[..., Outcome], weights: dict[str, torch.Tensor], member: str
) -> None:
    path = mini_llava / "pytorch_model.bin"
    torch.save(weights, path)
    with zipfile.ZipFile(path, "a") as archive:
        folder = archive.filelist[0].filename.partition("/")[0]
        archive.filelist[:] = [info for info in archive.filelist if info.filename != f"{folder}/{member}"]
        archive.NameToInfo.pop(f"{folder}/{member}", None)
        archive.writestr(f"{folder}/{member}", DEFLATED)
        # So says the archive's directory, by which torch goes.
        archive.filelist[-1].compress_type, archive.filelist[-1].file_size = zipfile.ZIP_DEFLATED, 12 * GIB
    assert path.stat().st_size < 20 << 20
    outcome = convert("--no-verify")
    assert outcome.exit_code == 2, outcome.stderr
    assert f"{member} is compressed" in outcome.error


def test_members_that_claim_more_than_the_file_holds_are_refused(
    mini_llava: Path, convert: Callable[..., Outcome], weights: dict[str, torch.Tensor]
) -> None:
    """The archive's directory names the same bytes twice."""
    path = mini_llava / "pytorch_model.bin"
    torch.save(weights, path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.filelist, key=lambda info: info.file_size)
        archive.filelist += [largest] * 4000
        archive.comment = b"changed"
    outcome = convert("--no-verify")
    assert outcome.exit_code == 2, outcome.stderr
    assert "copy it again" in outcome.error
