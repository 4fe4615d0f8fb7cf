"""Which tensors a ``.bin`` file holds and where they stand in it; what is no such file is refused, and never run."""

from __future__ import annotations

import argparse
import io
import os
import re
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from s4convert.checkpoint.tensors import TensorEntry
from s4convert.checkpoint.torch_file import read_torch_file, torch_dtype, warn_of_old_torch
from s4convert.errors import CheckpointError, S4ConvertError, StorageError
from tests.support.environments import in_llavas_environment, with_a_newer_torch

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
if hasattr(torch, "uint64"):  # torch 2.1 has no such dtypes, or cannot save them
    DTYPES |= {torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16"}
    DTYPES |= {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


def bytes_of(tensor: torch.Tensor) -> bytes:
    items = tensor.detach().clone(memory_format=torch.contiguous_format).reshape(-1)
    return items.view(torch.uint8).numpy().tobytes()


def stored_bytes(content: bytes, entry: TensorEntry) -> bytes:
    """The tensor of *entry* in a file of that *content*, item by item."""
    data = content[entry.begin : entry.end]
    if entry.strides is None:
        assert len(data) == entry.num_bytes
        return data
    item = entry.num_bytes // prod(entry.shape)
    items = [sum(i * s for i, s in zip(index, entry.strides, strict=True)) * item for index in np.ndindex(*entry.shape)]
    assert max(items) + item == len(data)
    return b"".join(data[at : at + item] for at in items)


def assert_reads(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """The table of the file *path* leads to exactly *tensors*."""
    weights, content = read_torch_file(path), path.read_bytes()
    assert weights.file_size == len(content)
    assert [entry.begin for entry in weights.entries] == sorted(entry.begin for entry in weights.entries)
    assert {entry.name for entry in weights.entries} == set(tensors)
    for entry in weights.entries:
        tensor = tensors[entry.name]
        assert (entry.dtype, entry.shape) == (DTYPES[tensor.dtype], tuple(tensor.shape)), entry.name
        assert stored_bytes(content, entry) == bytes_of(tensor), entry.name


def assert_saved_and_read(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    torch.save(tensors, path)
    assert_reads(path, tensors)


# --- what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read(path: Path, dtype: torch.dtype) -> None:
    assert_saved_and_read(path, {"weight": torch.arange(12).reshape(3, 4).to(dtype), "one": torch.ones(1).to(dtype)})
    assert torch_dtype(DTYPES[dtype]) is dtype


def test_scalars_and_empty_tensors_are_read(path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.5), "empty": torch.empty(0), "no rows": torch.empty(0, 7), "w": torch.ones(2)}
    assert_saved_and_read(path, tensors)


def test_a_file_of_empty_tensors_alone_is_read(path: Path) -> None:
    assert_saved_and_read(path, {"empty": torch.empty(0), "no columns": torch.empty(4, 0, dtype=torch.float16)})


def test_a_file_without_tensors_is_read(path: Path) -> None:
    assert_saved_and_read(path, {})


def test_tied_weights_are_read_under_both_names(path: Path) -> None:
    weight = torch.randn(5, 3)
    assert_saved_and_read(path, {"embed_tokens.weight": weight, "lm_head.weight": weight, "other": torch.randn(2)})
    first, second = (entry for entry in read_torch_file(path).entries if entry.name != "other")
    assert (first.begin, first.end) == (second.begin, second.end)


def test_views_that_overlap_in_one_storage_are_read(path: Path) -> None:
    whole = torch.randn(10)
    assert_saved_and_read(path, {"whole": whole, "begin": whole[:6], "end": whole[4:], "middle": whole[3:5]})


def test_the_rest_of_a_storage_that_only_a_part_is_needed_of_does_not_matter(path: Path) -> None:
    assert_saved_and_read(path, {"part": torch.arange(1000)[990:995], "other": torch.arange(4)})


@pytest.mark.parametrize(
    "view",
    [
        pytest.param(lambda t: t.T, id="transposed"),
        pytest.param(lambda t: t[::2], id="every other row"),
        pytest.param(lambda t: t[:, 1::3], id="every third column"),
        pytest.param(lambda t: t[1:, 1:3], id="a block"),
        pytest.param(lambda t: t[0, 0].expand(4, 5), id="one number expanded"),
        pytest.param(lambda t: t[:1].expand(3, -1), id="a row expanded"),
        pytest.param(lambda t: t.unfold(0, 2, 1), id="windows that overlap"),
        pytest.param(lambda t: t.diagonal(), id="diagonal"),
        pytest.param(lambda t: torch.flip(t, (0,)).T, id="flipped and transposed"),
    ],
)
def test_tensors_whose_rows_do_not_follow_each_other_are_read(
    path: Path, view: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensor = view(torch.arange(40.0).reshape(5, 8))
    assert not tensor.is_contiguous()
    assert_saved_and_read(path, {"first": torch.ones(3), "weight": tensor, "last": torch.ones(3)})


def test_parameters_are_read_as_tensors(path: Path) -> None:
    assert_saved_and_read(path, {"weight": torch.nn.Parameter(torch.randn(3, 2)), "bias": torch.zeros(3)})


def test_the_state_dict_of_a_module_with_its_metadata_is_read(path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).state_dict()
    assert isinstance(state, OrderedDict)
    assert hasattr(state, "_metadata")
    assert_saved_and_read(path, state)


@pytest.mark.parametrize("before", [False, True], ids=["after", "before"])
@pytest.mark.parametrize("num_tensors", [1, 2])
def test_storages_that_no_tensor_needs_are_passed_over(path: Path, num_tensors: int, before: bool) -> None:
    tensors = dict([("a", torch.randn(6)), ("b", torch.randn(3, 5))][:num_tensors])
    torch.save(tensors, path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]
        archive.writestr(f"{root}/data/98", bytes(24))
        archive.writestr(f"{root}/data/99", bytes(60))
    if before:
        rewrite(path, order=lambda names: [*names[:1], *names[-2:], *names[1:-2]])
    assert_reads(path, tensors)


def test_an_archive_that_another_program_packed_is_read(path: Path) -> None:
    tensors = {"a": torch.randn(6), "b": torch.randn(3, 5), "c": torch.ones(7, dtype=torch.bool)}
    torch.save(tensors, path)
    rewrite(path)
    assert_reads(path, tensors)


def test_a_storage_larger_than_a_page_is_found(path: Path) -> None:
    assert_saved_and_read(path, {str(number): torch.randn(1 << 14) for number in range(6)})


def test_the_file_is_found_by_a_name_of_any_letters(tmp_path: Path) -> None:
    assert_saved_and_read(tmp_path / "gewichte äöü 重み.bin", {"weight": torch.randn(3)})


@st.composite
def views(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any bits, dtype and shape, cut out of a larger one in any way that strides can say."""
    dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    offset = draw(st.integers(0, 3))
    count = prod(shape)
    raw = torch.randint(0, 256, ((offset + count) * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    flat = raw % 2 == 1 if dtype is torch.bool else raw.view(dtype)
    tensor = flat[offset:].reshape(shape)
    for axis in range(tensor.dim()):
        tensor = tensor.narrow(axis, 0, draw(st.integers(0, tensor.shape[axis])))
        step = draw(st.integers(1, 3))
        tensor = tensor[(slice(None),) * axis + (slice(None, None, step),)]
    tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    return tensor.expand(draw(st.integers(1, 3)), *tensor.shape) if draw(st.booleans()) else tensor


@settings(max_examples=150, deadline=None)
@given(st.lists(views(), max_size=4), st.booleans())
def test_the_bytes_of_any_tensors_are_found(tensors: list[torch.Tensor], twice: bool) -> None:
    by_name = {f"tensor.{number}": tensor for number, tensor in enumerate(tensors * (2 if twice else 1))}
    with tempfile.TemporaryDirectory() as directory:
        assert_saved_and_read(Path(directory, "pytorch_model.bin"), by_name)


@in_llavas_environment
def test_any_flipped_byte_is_refused_or_read_as_torch_reads_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": torch.arange(6.0).reshape(2, 3).T, "b": torch.arange(5)}, path)
    content = path.read_bytes()
    loaded: list[dict[str, torch.Tensor]] = []
    load = torch.load

    def load_and_tell(*args: Any, **options: Any) -> Any:
        loaded.append(load(*args, **options))
        return loaded[-1]

    # What torch makes of a damaged file can differ from one time to the next, so it must be the same time.
    monkeypatch.setattr(torch, "load", load_and_tell)
    refused = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :])
        try:
            entries = read_torch_file(path).entries
        except S4ConvertError:
            refused += 1
            continue
        found = {entry.name: stored_bytes(path.read_bytes(), entry) for entry in entries}
        assert found == {name: bytes_of(tensor) for name, tensor in loaded[-1].items()}, at
    assert refused > 300  # the others are in the weights, or in what nobody reads


# --- what is refused ------------------------------------------------------------------------------------------


def rewrite(
    path: Path,
    change: Callable[[str, bytes], bytes] = lambda name, content: content,
    order: Callable[[list[str]], list[str]] = lambda names: names,
    compression: int = zipfile.ZIP_STORED,
) -> None:
    """Pack the archive *path* anew, every member as *change* has it."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in order(list(members)):
            archive.writestr(name, change(name, members[name]))


def assert_refused(path: Path, message: str, error: type[S4ConvertError] = CheckpointError) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        read_torch_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value).splitlines()) == 1


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("place", ["value", "whole", "beside tensors"])
def test_what_a_pickle_would_run_is_never_run(path: Path, tmp_path: Path, place: str) -> None:
    trap = Trap(tmp_path / "it ran")
    torch.save({"value": {"w": trap}, "whole": trap, "beside tensors": {"a": torch.ones(2), "b": trap}}[place], path)
    assert_refused(path, "may run code when it is loaded; do not load it")
    assert not trap.marker.exists()
    torch.load(path, weights_only=False)  # and it is a trap
    assert trap.marker.exists()


MORE_THAN_TENSORS = "holds more than tensors and may run code when it is loaded; do not load it, and get the checkpoint"
NOT_PLAIN = "weight is sparse, nested, quantised, negated or without data; save it as a plain tensor first"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"args": argparse.Namespace(lr=1.0)}, MORE_THAN_TENSORS, id="a namespace"),
        pytest.param({"weight": np.ones(3)}, MORE_THAN_TENSORS, id="a numpy array"),
        pytest.param({"weight": os.system}, MORE_THAN_TENSORS, id="a function"),
        pytest.param(torch.nn.Linear(2, 2), MORE_THAN_TENSORS, id="a module"),
        pytest.param([torch.ones(2)], "holds a list, not tensors by name; save the state_dict alone", id="a list"),
        pytest.param(torch.ones(2), "holds a Tensor, not tensors by name; save the state_dict alone", id="a tensor"),
        pytest.param(None, "holds a NoneType, not tensors by name; save the state_dict alone", id="nothing"),
        pytest.param(
            {"state_dict": {"weight": torch.ones(2)}},
            "state_dict is a dict, no tensor; save the state_dict alone",
            id="a state_dict inside",
        ),
        pytest.param({"weight": torch.ones(2), "step": 3}, "step is a int, no tensor; save the", id="a number"),
        pytest.param({3: torch.ones(2)}, "the name 3 is no text; save the state_dict alone", id="a number as name"),
        pytest.param(
            {b"w": torch.ones(2)},
            "the name b'w' is no text; save the state_dict",
            id="bytes as name",
            marks=with_a_newer_torch,
        ),
        pytest.param({"": torch.ones(2)}, "tensor name '' is not safe; rename or remove it", id="no name"),
        pytest.param({"a..b": torch.ones(2)}, "tensor name 'a..b' is not safe; rename", id="dots in a name"),
        pytest.param({"a\0": torch.ones(2)}, "tensor name 'a\\x00' is not safe; rename", id="NUL in a name"),
        pytest.param(
            {"__metadata__": torch.ones(2)}, "tensor name '__metadata__' is not safe; rename", id="safetensors' own"
        ),
        pytest.param({"\ud800": torch.ones(2)}, "lone surrogate in '\\ud800'; rename", id="half a character"),
        pytest.param({"weight": torch.eye(3).to_sparse()}, NOT_PLAIN, id="sparse"),
        pytest.param({"weight": torch.empty(3, device="meta")}, NOT_PLAIN, id="without data"),
        pytest.param(
            {"weight": torch.ones(3, dtype=torch.complex64).conj().imag}, NOT_PLAIN, id="its storage holds the opposite"
        ),
        pytest.param(
            {"weight": torch.ones(3, dtype=torch.complex64)},
            "weight is stored as torch.complex64, which cannot be converted; cast it first",
            id="complex",
        ),
    ],
)
def test_what_is_not_tensors_by_name_is_refused(path: Path, content: object, message: str) -> None:
    torch.save(content, path)
    assert_refused(path, message)


@with_a_newer_torch
@pytest.mark.filterwarnings("ignore")  # torch has deprecated such tensors
def test_quantised_tensors_are_refused_without_torchs_warnings(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    torch.save({"weight": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)
    recwarn.clear()
    assert_refused(path, NOT_PLAIN)
    assert not recwarn.list


DAMAGED = "is damaged, or not in the format that torch writes since version 1.6"


def write_legacy(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/data/0", "no weights")


def write_git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def write_torchscript(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def write_directory(path: Path) -> None:
    path.mkdir()


def write_nothing(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("write", "message", "error"),
    [
        (write_legacy, DAMAGED, CheckpointError),
        (write_tar, DAMAGED, CheckpointError),
        (Path.touch, DAMAGED, CheckpointError),
        (write_git_lfs_pointer, DAMAGED, CheckpointError),
        (write_zip, "is a zip archive, but none that torch.save wrote; get the weights again", CheckpointError),
        (write_torchscript, "is a TorchScript archive; save the state_dict of its model instead", CheckpointError),
        (write_directory, "cannot be read: Is a directory", StorageError),
        (write_nothing, "cannot be read: No such file or directory", StorageError),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")  # deprecated, but what it wrote is about
def test_what_torch_save_did_not_write_is_refused(
    path: Path, write: Callable[[Path], Any], message: str, error: type[S4ConvertError]
) -> None:
    write(path)
    assert_refused(path, message, error)


@pytest.fixture
def saved(path: Path) -> Path:
    torch.save({"weight": torch.arange(60.0), "bias": torch.arange(5)}, path)
    return path


def test_an_archive_that_is_cut_short_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for size in range(0, len(content), 13):
        saved.write_bytes(content[:size])
        assert_refused(saved, DAMAGED)


def test_an_archive_with_something_in_front_of_it_is_refused(saved: Path) -> None:
    saved.write_bytes(bytes(4096) + saved.read_bytes())
    assert_refused(saved, f"{DAMAGED} (Something stands in front of the zip file)")


@in_llavas_environment
def test_a_flipped_byte_in_the_directory_of_the_archive_never_leads_elsewhere(saved: Path) -> None:
    content = saved.read_bytes()
    begin = content.index(b"PK\1\2")
    before = read_torch_file(saved).entries
    for at in range(begin, len(content)):
        for flip in (0x01, 0x80, 0xFF):
            saved.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
            try:
                found = read_torch_file(saved).entries
            except S4ConvertError as error:
                assert len(str(error).splitlines()) == 1
            else:
                assert found == before


def test_compressed_weights_are_refused(saved: Path) -> None:
    rewrite(saved, compression=zipfile.ZIP_DEFLATED)
    assert_refused(saved, "data.pkl is compressed; load and save it with torch")


def test_weights_of_a_big_endian_machine_are_refused(saved: Path) -> None:
    rewrite(saved, lambda name, content: b"big" if name.endswith("byteorder") else content)
    assert_refused(saved, "was written on a big-endian machine; load and save it on this one")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: b"", "cannot be read by torch"),
        (lambda content: content[:-1], "cannot be read by torch"),
        (lambda content: b"not a pickle", MORE_THAN_TENSORS),
        (lambda content: content.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"), MORE_THAN_TENSORS),
        (lambda content: content.replace(b"torch._utils", b"os.path.util"), MORE_THAN_TENSORS),
    ],
    ids=["empty", "cut short", "text", "a function unknown", "a module unknown"],
)
def test_a_pickle_that_cannot_be_read_is_refused(saved: Path, change: Callable[[bytes], bytes], message: str) -> None:
    rewrite(saved, lambda name, content: change(content) if name.endswith("data.pkl") else content)
    assert_refused(saved, message)


def test_storages_of_another_size_than_the_pickle_says_are_refused(saved: Path) -> None:
    rewrite(saved, lambda name, content: content[:-8] if name.endswith("data/0") else content)
    assert_refused(saved, "its storages are not where its pickle says; load and save it with torch")


# --- torch itself ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        *(("2.1.2", True), ("2.6.0+cu124", True), ("2.9.1", True), ("2.9.0a0+git1a2b", True)),
        *(("2.10.0", False), ("2.10.0.dev20251101+cpu", False), ("2.11.0", False), ("3.0.0", False)),
    ],
)
def test_a_torch_with_known_holes_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str, warned: bool
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    warn_of_old_torch()
    expected = f"torch {version} reads .bin and .pt files with known security holes; for files you do not"
    assert [expected in message for message in caplog.messages] == [True] * warned
