"""Masks in arrays: .npy, .pt and .safetensors, read without running anything and refused with the reason."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from s4convert.checkpoint import Geometry
from s4convert.errors import MaskError
from s4convert.mask import HeadMask, parse_schedule
from s4convert.mask.files import load_mask
from tests.support.command_line import ROOT

GEOMETRY = Geometry(num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2, hidden_size=8)
PRUNED = ((1, 2), (), (0,))
FLAGS = np.array([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]])  # 1 = pruned
TENSOR = torch.tensor(FLAGS)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int64", ">i4", "float16", "float32", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("polarity", ["keep", "prune"])
def test_numpy_arrays(tmp_path: Path, dtype: str, order: Any, polarity: Any) -> None:
    array = np.asarray(FLAGS if polarity == "prune" else 1 - FLAGS, dtype, order=order)
    mask = load_mask(write(tmp_path / "mask.NPY", npy(array)), GEOMETRY, polarity=polarity)
    assert mask.pruned == PRUNED
    assert mask.file.how_read == f"NumPy array, 1 = {'pruned' if polarity == 'prune' else 'keep'}, 3 of 12 heads"


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("polarity", ["keep", "prune"])
def test_torch_and_safetensors_files(tmp_path: Path, dtype: torch.dtype, polarity: Any) -> None:
    tensor = (TENSOR if polarity == "prune" else 1 - TENSOR).to(dtype)
    torch.save(tensor, tmp_path / "mask.pt")
    torch.save({"head_mask": tensor}, tmp_path / "mask.pth")
    save_file({"any name": tensor}, tmp_path / "mask.safetensors")
    for name in ("mask.pt", "mask.pth", "mask.safetensors"):
        assert load_mask(tmp_path / name, GEOMETRY, polarity=polarity) == HeadMask(4, PRUNED)


def test_a_trained_tensor_and_a_transposed_view_are_read(tmp_path: Path) -> None:
    torch.save(torch.nn.Parameter(TENSOR.float()), tmp_path / "trained.pt")
    torch.save(TENSOR.t().contiguous().t(), tmp_path / "view.pt")
    for name in ("trained.pt", "view.pt"):
        assert load_mask(tmp_path / name, GEOMETRY, polarity="prune").pruned == PRUNED


class Shell:
    """What a pickle may do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("the pickle ran",))


def zip_of_zeros() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(65 * 2**20))
    return file.getvalue()


def safetensors_header(fields: object, data: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text + data


REFUSED: dict[str, tuple[str, bytes, str]] = {
    "npy: empty": ("mask.npy", b"", "is not a .npy file of numbers"),
    "npy: JSON": ("mask.npy", b"[[0, 1, 1, 0]]", "is not a .npy file of numbers"),
    "npy: an .npz file": ("mask.npy", b"PK\x03\x04" + bytes(100), "is not a .npy file of numbers"),
    "npy: version 9": ("mask.npy", b"\x93NUMPY\x09\x00" + bytes(100), "is not a .npy file of numbers"),
    "npy: header cut off": ("mask.npy", npy(FLAGS)[:30], "is not a .npy file of numbers"),
    "npy: header is code": ("mask.npy", npy(FLAGS).replace(b"'descr'", b"exit(1)"), "is not a .npy file of numbers"),
    "npy: header is no literal": (
        "mask.npy",
        npy(FLAGS).replace(b"(3, 4), }", b"(3, 4, ((("),
        "is not a .npy file of numbers, or damaged",
    ),
    "npy: no such number": ("mask.npy", npy(FLAGS).replace(b"'<i8'", b"'<f1'"), "is a NumPy array of '<f1'"),
    "npy: values cut off": ("mask.npy", npy(FLAGS)[:-1], "has 95 bytes of values"),
    "npy: trailing bytes": ("mask.npy", npy(FLAGS) + b"x", "has 97 bytes of values"),
    "npy: absurd shape": (
        "mask.npy",
        npy(FLAGS).replace(b"(3, 4), }       ", b"(3, 99999999), }"),
        "is an array of shape [3, 99999999], but the checkpoint has 3 layers of 4 heads",
    ),
    "npy: pickled objects": (
        "mask.npy",
        npy(np.array([[Shell()]])),
        "is a NumPy array of '|O', not of 0/1 or booleans",
    ),
    "npy: words": ("mask.npy", npy(np.array([["keep"] * 4] * 3)), "is a NumPy array of '<U4'"),
    "npy: complex": ("mask.npy", npy(FLAGS.astype(complex)), "is a NumPy array of '<c16'"),
    "npy: records": ("mask.npy", npy(np.zeros((3, 4), [("head", "i4")])), "is not a .npy file of numbers, or damaged"),
    "npy: dates": ("mask.npy", npy(FLAGS.astype("M8[s]")), "is a NumPy array of '<M8[s]'"),
    "npy: transposed": ("mask.npy", npy(FLAGS.T), "is an array of shape [4, 3], but the checkpoint has 3 layers of 4"),
    "npy: flat": ("mask.npy", npy(FLAGS.ravel()), "is an array of shape [12]"),
    "npy: one more axis": ("mask.npy", npy(FLAGS[None]), "is an array of shape [1, 3, 4]"),
    "npy: a number": ("mask.npy", npy(np.array(1)), "is an array of shape []"),
    "npy: a two": ("mask.npy", npy(2 * FLAGS), "layer 0, head 1: 2 is neither 0 nor 1"),
    "npy: a half": ("mask.npy", npy(FLAGS - 0.5), "layer 0, head 0: -0.5 is neither 0 nor 1"),
    "npy: a byte of 2 for a boolean": (
        "mask.npy",
        npy(FLAGS.astype(bool)).replace(b"\0\1\1\0\0", b"\0\1\2\0\0"),
        "layer 0, head 2: 2 is neither 0 nor 1",
    ),
    "npy: NaN": ("mask.npy", npy(np.where(FLAGS, np.nan, 0)), "layer 0, head 1: nan is neither 0 nor 1"),
    "npy: no polarity": ("mask.npy", npy(FLAGS), "does not say which are pruned; say what a 1 means with `mask_pol"),
    "pt: empty": ("mask.pt", b"", "is not in the format that torch writes since version 1.6"),
    "pt: the old format": (
        "mask.pt",
        saved(TENSOR, _use_new_zipfile_serialization=False),
        "is not in the format that torch writes since version 1.6",
    ),
    "pt: cut off": ("mask.pt", saved(TENSOR)[:-10], "is not in the format that torch writes since version 1.6"),
    "pt: an empty archive": ("mask.pt", b"PK\x05\x06" + bytes(18), "cannot be read by torch as tensors alone"),
    "pt: a bit of the values flipped": (
        "mask.pt",
        saved(TENSOR).replace(TENSOR.numpy().tobytes(), (1 - TENSOR).numpy().tobytes()),
        "is damaged: the checksum of 'archive/data/0' is another",
    ),
    "pt: runs code": ("mask.pt", saved(Shell()), "cannot be read by torch as tensors alone (weights_only)"),
    "pt: unpacks to too much": ("mask.pt", zip_of_zeros(), "unpacks to 68,157,440 bytes, too many for a mask"),
    "pt: a numpy array": ("mask.pt", saved(FLAGS), "cannot be read by torch as tensors alone"),
    "pt: lists": ("mask.pt", saved(FLAGS.tolist()), "holds 'list'; a mask is one tensor"),
    "pt: two tensors": ("mask.pt", saved({"a": TENSOR, "b": TENSOR}), "holds 'dict'; a mask is one tensor"),
    "pt: listed heads": ("mask.pth", saved({0: [1, 2]}), "holds 'dict'; a mask is one tensor"),
    "pt: sparse": ("mask.pt", saved(TENSOR.to_sparse()), "is a sparse, quantised, complex, nested or empty tensor"),
    "pt: complex": (
        "mask.pt",
        saved(TENSOR.to(torch.complex64)),
        "is a sparse, quantised, complex, nested or empty tensor",
    ),
    "pt: transposed": ("mask.pt", saved(TENSOR.t()), "is an array of shape [4, 3]"),
    "pt: one row, expanded": ("mask.pt", saved(TENSOR[:1].expand(10**6, 4)), "is an array of shape [1000000, 4]"),
    "pt: a three": ("mask.pt", saved(TENSOR * 3), "layer 0, head 1: 3 is neither 0 nor 1"),
    "pt: a byte of 2 for a boolean": (
        "mask.pt",
        saved((TENSOR * 2).to(torch.uint8).view(torch.bool)),
        "layer 0, head 1: 2 is neither 0 nor 1",
    ),
    "pt: no polarity": ("mask.pth", saved(TENSOR), "does not say which are pruned"),
    "safetensors: empty": ("mask.safetensors", b"", "is not a safetensors file, or cut off"),
    "safetensors: long header": ("mask.safetensors", b"\xff" * 8, "is not a safetensors file, or cut off"),
    "safetensors: no JSON": ("mask.safetensors", b"\x02" + bytes(7) + b"{x", "malformed safetensors header"),
    "safetensors: no tensor": ("mask.safetensors", safetensors_header({}), "holds 0 tensors; a mask is one tensor"),
    "safetensors: another dtype": (
        "mask.safetensors",
        safetensors_header({"m": {"dtype": "F8_E4M3", "shape": [3, 4], "data_offsets": [0, 12]}}, bytes(12)),
        "'m' is of F8_E4M3, not of 0/1 or booleans",
    ),
    "safetensors: transposed": (
        "mask.safetensors",
        safetensors_header({"m": {"dtype": "BOOL", "shape": [4, 3], "data_offsets": [0, 12]}}, bytes(12)),
        "is an array of shape [4, 3]",
    ),
    "safetensors: a byte of 2 for a boolean": (
        "mask.safetensors",
        safetensors_header({"m": {"dtype": "BOOL", "shape": [3, 4], "data_offsets": [0, 12]}}, b"\x02" * 12),
        "layer 0, head 0: 2 is neither 0 nor 1",
    ),
    "safetensors: no polarity": (
        "mask.safetensors",
        safetensors_header({"m": {"dtype": "BOOL", "shape": [3, 4], "data_offsets": [0, 12]}}, b"\0\1" * 6),
        "does not say which are pruned",
    ),
    "an archive of arrays": ("mask.npz", b"PK\x03\x04" + bytes(100), "is not JSON"),
    "a pickle": ("mask.pkl", b"\x80\x04}q\x00.", "is not JSON"),
}


@pytest.mark.parametrize(("name", "content", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_with_the_reason(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(MaskError, match=re.escape(message)) as caught:
        load_mask(write(tmp_path / name, content), GEOMETRY, polarity=None)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_an_array_is_no_file_of_scores(tmp_path: Path) -> None:
    with pytest.raises(MaskError, match="holds 0/1 flags, not scores; leave `rate` and `schedule` out"):
        load_mask(write(tmp_path / "mask.npy", npy(FLAGS)), GEOMETRY, schedule=parse_schedule("uniform", 0.3))


@pytest.mark.parametrize("name", ["mask.npy", "mask.safetensors"])
def test_torch_is_imported_for_its_own_files_only(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "mask.npy", FLAGS)
    save_file({"m": TENSOR}, tmp_path / "mask.safetensors")
    code = (
        "import sys; from s4convert.checkpoint import Geometry; from s4convert.mask.files import load_mask; "
        f"load_mask({str(tmp_path / name)!r}, Geometry(3, 4, 2, 2, 8), polarity='prune'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def safetensors_bytes() -> bytes:
    data = FLAGS.astype("<i8").tobytes()
    return safetensors_header({"m": {"dtype": "I64", "shape": [3, 4], "data_offsets": [0, len(data)]}}, data)


@settings(deadline=None)
@given(
    st.sampled_from([("mask.npy", npy(FLAGS)), ("mask.pt", saved(TENSOR)), ("mask.safetensors", safetensors_bytes())]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 10**6) | st.none(),
)
def test_a_damaged_file_is_refused_or_read_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, bytes], changes: list[tuple[int, int]], end: int | None
) -> None:
    name, content = file
    damaged = bytearray(content)
    for position, byte in changes:
        damaged[position % len(damaged)] = byte
    path = write(tmp_path_factory.getbasetemp() / name, bytes(damaged[: None if end is None else end % len(damaged)]))
    try:
        load_mask(path, GEOMETRY, polarity="prune")
    except MaskError as error:
        assert "\n" not in str(error)
