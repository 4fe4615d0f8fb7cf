"""Two directories that are not the two sides of a conversion: the message says which of them is wrong, and why."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from s4convert import Checkpoint, HeadMask, convert, verify_conversion
from s4convert.errors import VerificationError
from tests.support.synthetic import Spec, write_checkpoint

SPEC = Spec(num_layers=12, num_kv_heads=4)
MASK = HeadMask(4, ((), (), (1, 2), (), (), (), (), (), (), (), (0,), ()))
OTHER = HeadMask(4, ((), (), (1, 3), (), (), (), (), (), (), (), (0,), ()))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.fixture
def converted(original: Path, tmp_path: Path) -> Path:
    convert(original, tmp_path / "out", MASK, check_behaviour=False)
    return tmp_path / "out"


def said_of(before: Path, after: Path, mask: HeadMask | None = None) -> str:
    """What is wrong, without the paths before it."""
    with pytest.raises(VerificationError) as caught:
        verify_conversion(before, after, mask=mask, check_behaviour=False)
    (line,) = str(caught.value).splitlines()
    return line.replace(f"{before.parent}/", "")


@pytest.mark.parametrize("mask", [None, MASK], ids=["by the manifest", "by a given mask"])
def test_an_unpruned_copy(original: Path, converted: Path, mask: HeadMask | None) -> None:
    copy = shutil.copytree(original, converted.with_name("copy"))
    if mask is None:
        shutil.copy(converted / "s4convert.json", copy)
    assert (
        said_of(original, copy, mask)
        == "copy: is byte-identical to in in all 115 tensors: nothing was pruned; give the converted checkpoint"
    )


def test_swapped_sides_with_a_manifest(original: Path, converted: Path) -> None:
    said = said_of(converted, original)
    assert said == "out: is a conversion, as its manifest says, and in has none; give the original first"


def test_swapped_sides_without_a_manifest(original: Path, converted: Path) -> None:
    (converted / "s4convert.json").unlink()
    said = said_of(converted, original, MASK)
    assert said == "out: has silent heads that in has not; the two are swapped, give the original first"


def test_another_original(converted: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", Spec(num_layers=12, num_kv_heads=4, seed=1))
    assert said_of(other, converted) == (
        "out: was made from 'in', another checkpoint than other, as the fingerprint tells; give the one that it was "
        "made from"
    )


def test_the_conversion_as_its_own_original(converted: Path) -> None:
    assert "another checkpoint than out, as the fingerprint tells" in said_of(converted, converted)


def test_another_mask(original: Path, converted: Path) -> None:
    assert said_of(original, converted, OTHER) == (
        "out: was pruned by another mask, and its manifest has another than the one given: layer 2 has lost heads 1, "
        "2, where the mask takes heads 1, 3; give the mask that it was made by, or convert again"
    )


def test_a_layer_that_was_left_out(original: Path, converted: Path) -> None:
    content = json.loads((converted / "s4convert.json").read_text())
    content["mask"]["pruned"]["4"] = [2]
    (converted / "s4convert.json").write_text(json.dumps(content))
    assert "layer 4 has lost no head, where the mask takes heads 2" in said_of(original, converted)


def spoil(directory: Path, layer: int) -> None:
    """Change a kept column of *layer*."""
    stored = Checkpoint.open(directory).output_projection(layer)
    with (directory / stored.shard).open("r+b") as file:
        file.seek(stored.entry.begin + 2 * 4 * 3)  # the first number of head 3
        file.write(b"\x00\x3c")


@pytest.mark.parametrize("shards", [1, 4])
def test_of_two_bad_layers_the_first_is_named_wherever_it_stands(tmp_path: Path, shards: int) -> None:
    original = write_checkpoint(tmp_path / "in", Spec(num_layers=12, num_kv_heads=4, num_shards=shards))
    convert(original, tmp_path / "out", MASK, check_behaviour=False)
    for layer in (10, 2):
        spoil(tmp_path / "out", layer)
    assert re.search(r"o_proj.weight of layer 2 is not what the mask asks for", said_of(original, tmp_path / "out"))


@pytest.mark.parametrize(
    "break_off",
    [lambda path: path.write_bytes(path.read_bytes()[:-2]), lambda path: path.unlink()],
    ids=["cut short", "gone"],
)
def test_a_checkpoint_that_cannot_be_read_is_told_as_such(
    original: Path, converted: Path, break_off: Callable[[Path], object]
) -> None:
    break_off(converted / "model.safetensors")
    assert "silent" not in said_of(original, converted)
