"""Which safetensors files are refused, one literal per rule; the others are read as the reference reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from s4convert.checkpoint.safetensors_header import SafetensorsHeader, read_header
from s4convert.errors import CheckpointError, StorageError
from tests.attacks.rules import REFUSED_HEADERS, STRICTER_HEADERS
from tests.battery.headers import ACCEPTED, ATTACKS, REJECTED, compare_file, compare_files, framed
from tests.support.environments import in_llavas_environment

FUZZ_EXAMPLES = 3000
HEADERS = ATTACKS / "headers"

A = b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
B = b'"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}'


def entry(dtype: bytes = b'"U8"', shape: bytes = b"[2]", offsets: bytes = b"[0,2]") -> bytes:
    """A file of two bytes of data and one tensor with these three fields."""
    return framed(b'{"a":{"dtype":%b,"shape":%b,"data_offsets":%b}}' % (dtype, shape, offsets), b"xx")


def named(name: bytes) -> bytes:
    """A file whose only tensor has the JSON string *name*."""
    return framed(b'{%b:{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}' % name, b"xx")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def read(path: Path, content: bytes) -> SafetensorsHeader:
    path.write_bytes(content)
    return read_header(path)


@pytest.mark.parametrize("rule", REFUSED_HEADERS)
def test_is_refused_by_its_own_rule(file: Path, rule: str) -> None:
    content = (HEADERS / "refused" / f"{rule}.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match=re.escape(REFUSED_HEADERS[rule])) as caught:
        read(file, content)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)
    assert compare_file(content, file) == (ACCEPTED if rule in STRICTER_HEADERS else REJECTED, "refused")


def test_every_file_of_the_corpus_has_its_rule() -> None:
    assert {path.stem for path in (HEADERS / "refused").iterdir()} == REFUSED_HEADERS.keys()


@pytest.mark.parametrize("name", sorted(path.name for path in (HEADERS / "read").iterdir()))
def test_is_read_as_the_reference_reads_it(file: Path, name: str) -> None:
    assert compare_file((HEADERS / "read" / name).read_bytes(), file) == (ACCEPTED, "read")


def test_a_file_that_cannot_be_read_is_an_error_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: No such file"):
        read_header(tmp_path / "missing.safetensors")
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


def test_offsets_count_from_the_start_of_the_file(file: Path) -> None:
    header = read(file, framed(b"{" + A + b"," + B + b"}", b"wxyz"))
    assert (header.data_begin, header.file_size) == (113, 117)
    assert [(e.name, e.dtype, e.shape, e.begin, e.end, e.num_bytes) for e in header.entries] == [
        ("a", "U8", (2,), 113, 115, 2),
        ("b", "U8", (2,), 115, 117, 2),
    ]


def test_entries_are_in_the_order_of_the_data_not_of_the_header(file: Path) -> None:
    header = read(file, framed(b"{" + B + b"," + A + b"}", b"wxyz"))
    assert [e.name for e in header.entries] == ["a", "b"]


def test_tensors_of_no_bytes_may_stand_anywhere(file: Path) -> None:
    empty = [
        b'"%b":{"dtype":"F32","shape":[%b],"data_offsets":[%d,%d]}' % (name, shape, at, at)
        for name, shape, at in ((b"first", b"0", 0), (b"between", b"3,0", 2), (b"last", b"0,0,7", 4))
    ]
    header = read(file, framed(b"{" + b",".join([*empty, A, B]) + b"}", b"wxyz"))
    assert [e.name for e in header.entries] == ["first", "a", "between", "b", "last"]
    assert [e.num_bytes for e in header.entries] == [0, 2, 0, 2, 0]


def test_a_scalar_has_an_empty_shape(file: Path) -> None:
    (scalar,) = read(file, framed(b'{"s":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}', b"xx")).entries
    assert (scalar.shape, scalar.num_bytes) == ((), 2)


def test_a_file_may_hold_no_tensor(file: Path) -> None:
    header = read(file, framed(b"{}"))
    assert (header.entries, dict(header.metadata), header.data_begin) == ((), {}, 10)


def test_metadata_is_kept(file: Path) -> None:
    header = read(file, framed(b'{"__metadata__":{"format":"pt","empty":"","nul":"\\u0000"},' + A + b"}", b"xx"))
    assert dict(header.metadata) == {"format": "pt", "empty": "", "nul": "\0"}
    assert [e.name for e in header.entries] == ["a"]


def test_white_space_after_the_object_is_padding(file: Path) -> None:
    header = read(file, framed(b"{" + A + b"} \t\r\n ", b"xx"))
    assert header.entries[0].begin == 8 + 2 + len(A) + 5


@pytest.mark.parametrize("name", ["模型.weight", "😀", "a b", "a.b/c", ".", '"', "\\", "\n", "\x7f"])
def test_a_name_may_hold_any_other_character(file: Path, name: str) -> None:
    for ascii_only in (True, False):
        content = named(json.dumps(name, ensure_ascii=ascii_only).encode())
        assert [e.name for e in read(file, content).entries] == [name]


@pytest.mark.parametrize(
    ("dtype", "num_bytes"),
    [
        *(("F4", 4), ("F6_E2M3", 6), ("F6_E3M2", 6), ("BOOL", 8), ("U8", 8), ("I8", 8)),
        *(("F8_E5M2", 8), ("F8_E4M3", 8), ("F8_E8M0", 8), ("F8_E4M3FNUZ", 8), ("F8_E5M2FNUZ", 8)),
        *(("I16", 16), ("U16", 16), ("F16", 16), ("BF16", 16), ("I32", 32), ("U32", 32), ("F32", 32)),
        *(("I64", 64), ("U64", 64), ("F64", 64), ("C64", 64)),
    ],
)
def test_eight_elements_of_every_dtype_fill_their_bytes_and_no_others(file: Path, dtype: str, num_bytes: int) -> None:
    def content(size: int) -> bytes:
        return framed(b'{"a":{"dtype":"%b","shape":[4,2],"data_offsets":[0,%d]}}' % (dtype.encode(), size), bytes(size))

    assert read(file, content(num_bytes)).entries[0].num_bytes == num_bytes
    for wrong in (num_bytes - 1, num_bytes + 1):
        with pytest.raises(CheckpointError, match="does not fill"):
            read(file, content(wrong))


@in_llavas_environment
def test_what_the_reference_rejects_is_refused_and_the_rest_is_read_alike(tmp_path: Path) -> None:
    """``python -m tests.battery.headers`` does the same a million times."""
    compared = compare_files(FUZZ_EXAMPLES, 1, tmp_path)
    assert compared.wrong == []
    # All three kinds of mutant must have been met, or the comparison above says nothing.
    assert compared.outcomes[REJECTED, "refused"] > FUZZ_EXAMPLES // 5
    assert compared.outcomes[ACCEPTED, "read"] > FUZZ_EXAMPLES // 20
    assert compared.outcomes[ACCEPTED, "refused"] > FUZZ_EXAMPLES // 200
