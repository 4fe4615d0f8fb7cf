"""Which safetensors files are refused, one literal per rule; the others are read as the reference reads them."""

from __future__ import annotations

import json
import re
from collections import Counter
from math import prod
from pathlib import Path

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s4convert.checkpoint.safetensors_header import DTYPE_BITS, SafetensorsHeader, read_header
from s4convert.errors import CheckpointError, StorageError

FUZZ_EXAMPLES = 700

A = b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
B = b'"b":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}'


def framed(header: bytes, data: bytes = b"") -> bytes:
    """A file of *header*, whatever it is, and *data*."""
    return len(header).to_bytes(8, "little") + header + data


def entry(dtype: bytes = b'"U8"', shape: bytes = b"[2]", offsets: bytes = b"[0,2]") -> bytes:
    """A file of two bytes of data and one tensor with these three fields."""
    return framed(b'{"a":{"dtype":%b,"shape":%b,"data_offsets":%b}}' % (dtype, shape, offsets), b"xx")


def named(name: bytes) -> bytes:
    """A file whose only tensor has the JSON string *name*."""
    return framed(b'{%b:{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}' % name, b"xx")


REFUSED = {
    # the frame
    "no bytes": (b"", "0 bytes are too few"),
    "seven bytes": (b"\x02\0\0\0\0\0\0", "7 bytes are too few"),
    "header of more than 100 MB": ((100_000_001).to_bytes(8, "little") + b"{}", "claims 100,000,001 bytes"),
    "header of 2^64 - 1 bytes": (b"\xff" * 8 + b"{}", "claims 18,446,744,073,709,551,615 bytes"),
    "header of 100 MB past the end": ((100_000_000).to_bytes(8, "little") + b"{}", "past the end of the file"),
    "header one byte past the end": (b"\x03\0\0\0\0\0\0\0{}", "past the end of the file"),
    "trailing byte": (framed(b"{" + A + b"}", b"xxx"), "the tensors end at byte 63, the file at byte 64"),
    "trailing byte without tensors": (framed(b"{}", b"x"), "the tensors end at byte 10, the file at byte 11"),
    "truncated data": (framed(b"{" + A + b"}", b"x"), "the tensors end at byte 63, the file at byte 62"),
    # the JSON
    "empty header": (framed(b""), "does not start with '{'"),
    "leading white space": (framed(b" {" + A + b"}", b"xx"), "does not start with '{'"),
    "byte order mark": (framed(b"\xef\xbb\xbf{" + A + b"}", b"xx"), "does not start with '{'"),
    "list": (framed(b"[]"), "does not start with '{'"),
    "not UTF-8": (named(b'"\xff"'), "not UTF-8 at byte 2"),
    "surrogate in UTF-8": (named(b'"\xed\xa0\x80"'), "not UTF-8 at byte 2"),
    "UTF-16": (framed("{}".encode("utf-16-le")), "malformed safetensors header"),
    "cut off": (framed(b"{" + A, b"xx"), "Expecting ',' delimiter"),
    "single quotes": (framed(b"{'a':1}"), "Expecting property name"),
    "trailing comma": (framed(b"{" + A + b",}", b"xx"), "malformed safetensors header"),
    "trailing junk": (framed(b"{" + A + b"}x", b"xx"), "Extra data"),
    "second object": (framed(b"{" + A + b"}{}", b"xx"), "Extra data"),
    "NUL after the object": (framed(b"{" + A + b"}\0", b"xx"), "Extra data"),
    "control character": (named(b'"a\nb"'), "Invalid control character"),
    "unknown escape": (named(rb'"\x61"'), "Invalid \\escape"),
    "too deep": (framed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "nested too deeply"),
    "leading zero": (entry(offsets=b"[00,2]"), "malformed safetensors header"),
    "number of 5000 digits": (entry(shape=b"[" + b"1" * 5000 + b"]"), "malformed safetensors header"),
    "NaN": (entry(shape=b"[NaN]"), "NaN is not JSON"),
    "Infinity": (entry(shape=b"[Infinity]"), "Infinity is not JSON"),
    "minus Infinity": (entry(shape=b"[-Infinity]"), "-Infinity is not JSON"),
    # names that stand twice
    "tensor twice": (framed(b"{" + A + b"," + A + b"}", b"xx"), "'a' stands twice"),
    "tensor twice, once escaped": (
        framed(b"{" + A + b"," + A.replace(b"a", rb"\u0061", 1) + b"}", b"xx"),
        "'a' stands twice",
    ),
    "metadata twice": (framed(b'{"__metadata__":{},"__metadata__":{}}'), "'__metadata__' stands twice"),
    "metadata key twice": (framed(b'{"__metadata__":{"k":"1","k":"2"}}'), "'k' stands twice"),
    "dtype twice": (
        framed(b'{"a":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xx"),
        "'dtype' stands twice",
    ),
    "shape twice": (
        framed(b'{"a":{"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2]}}', b"xx"),
        "'shape' stands twice",
    ),
    "data_offsets twice": (
        framed(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"data_offsets":[0,2]}}', b"xx"),
        "'data_offsets' stands twice",
    ),
    # metadata
    "metadata is a list": (framed(b'{"__metadata__":[]}'), "__metadata__ must map names to strings"),
    "metadata is null": (framed(b'{"__metadata__":null}'), "__metadata__ must map names to strings"),
    "metadata is a tensor": (
        framed(b'{"__metadata__":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xx"),
        "__metadata__ must map names to strings",
    ),
    "metadata value is a number": (framed(b'{"__metadata__":{"k":1}}'), "__metadata__ must map names to strings"),
    "metadata value is null": (framed(b'{"__metadata__":{"k":null}}'), "__metadata__ must map names to strings"),
    "metadata value is an object": (framed(b'{"__metadata__":{"k":{}}}'), "__metadata__ must map names to strings"),
    "lone surrogate in a metadata key": (framed(rb'{"__metadata__":{"\ud800":"v"}}'), "lone surrogate"),
    "lone surrogate in a metadata value": (framed(rb'{"__metadata__":{"k":"\udfff"}}'), "lone surrogate"),
    # names of tensors
    "empty name": (named(b'""'), "tensor name '' is not safe"),
    "NUL in a name": (named(rb'"a\u0000b"'), "is not safe"),
    "two dots in a name": (named(b'"../a"'), "tensor name '../a' is not safe"),
    "lone surrogate in a name": (named(rb'"\ud800"'), "lone surrogate"),
    "surrogates in the wrong order": (named(rb'"\udc00\ud800"'), "lone surrogate"),
    # an entry's fields
    "entry is null": (framed(b'{"a":null}'), "'a' must have exactly dtype, shape and data_offsets"),
    "entry is a list": (framed(b'{"a":["U8",[2],[0,2]]}', b"xx"), "must have exactly"),
    "entry is a string": (framed(b'{"a":"U8"}'), "must have exactly"),
    "entry is empty": (framed(b'{"a":{}}'), "must have exactly"),
    "no dtype": (framed(b'{"a":{"shape":[2],"data_offsets":[0,2]}}', b"xx"), "must have exactly"),
    "no shape": (framed(b'{"a":{"dtype":"U8","data_offsets":[0,2]}}', b"xx"), "must have exactly"),
    "no data_offsets": (framed(b'{"a":{"dtype":"U8","shape":[2]}}', b"xx"), "must have exactly"),
    "unknown field": (
        framed(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"stride":[1]}}', b"xx"),
        "must have exactly",
    ),
    # dtype
    "unknown dtype": (entry(dtype=b'"Q4"'), "unknown dtype 'Q4'"),
    "dtype in lower case": (entry(dtype=b'"u8"'), "unknown dtype 'u8'"),
    "dtype is null": (entry(dtype=b"null"), "unknown dtype None"),
    "dtype is a number": (entry(dtype=b"8"), "unknown dtype 8"),
    "dtype is a list": (entry(dtype=b'["U8"]'), "unknown dtype ['U8']"),
    # shape
    "shape is a number": (entry(shape=b"2"), "shape that is not a list of sizes"),
    "shape is null": (entry(shape=b"null"), "shape that is not a list of sizes"),
    "shape is an object": (entry(shape=b'{"0":2}'), "shape that is not a list of sizes"),
    "negative size": (entry(shape=b"[-2]"), "shape that is not a list of sizes"),
    "two negative sizes": (entry(shape=b"[-2,-1]"), "shape that is not a list of sizes"),
    "float size": (entry(shape=b"[2.0]"), "shape that is not a list of sizes"),
    "exponent size": (entry(shape=b"[2e0]"), "shape that is not a list of sizes"),
    "string size": (entry(shape=b'["2"]'), "shape that is not a list of sizes"),
    "boolean size": (entry(shape=b"[2,true]"), "shape that is not a list of sizes"),
    "null size": (entry(shape=b"[2,null]"), "shape that is not a list of sizes"),
    "nested size": (entry(shape=b"[[2]]"), "shape that is not a list of sizes"),
    "size of 2^64": (entry(shape=b"[18446744073709551616]"), "shape that is not a list of sizes"),
    "size that overflows": (entry(shape=b"[4294967296,4294967296]"), "absurd shape"),
    "size that wraps around to two": (entry(shape=b"[9223372036854775809,2]"), "absurd shape"),
    "absurd size behind a zero": (entry(shape=b"[0,9223372036854775807]", offsets=b"[0,0]"), "absurd shape"),
    # data_offsets
    "one offset": (entry(offsets=b"[0]"), "must have two data_offsets"),
    "three offsets": (entry(offsets=b"[0,2,2]"), "must have two data_offsets"),
    "no offsets": (entry(offsets=b"[]"), "must have two data_offsets"),
    "offsets are a number": (entry(offsets=b"2"), "must have two data_offsets"),
    "offsets are an object": (entry(offsets=b'{"begin":0,"end":2}'), "must have two data_offsets"),
    "offsets are null": (entry(offsets=b"null"), "must have two data_offsets"),
    "negative offset": (entry(offsets=b"[-1,1]"), "must have two data_offsets"),
    "float offset": (entry(offsets=b"[0.0,2]"), "must have two data_offsets"),
    "string offset": (entry(offsets=b'["0",2]'), "must have two data_offsets"),
    "boolean offset": (entry(offsets=b"[false,2]"), "must have two data_offsets"),
    "offset of 2^64": (entry(offsets=b"[0,18446744073709551616]"), "must have two data_offsets"),
    "end before begin": (entry(offsets=b"[2,0]"), "ends before it begins"),
    # where the data lies
    "fewer bytes than the shape": (entry(shape=b"[3]"), "U8 [3] does not fill its 2 bytes"),
    "more bytes than the shape": (entry(shape=b"[1]"), "U8 [1] does not fill its 2 bytes"),
    "fewer bytes than the dtype": (entry(dtype=b'"F32"'), "F32 [2] does not fill its 2 bytes"),
    "zero size with bytes": (entry(shape=b"[2,0]"), "U8 [2, 0] does not fill its 2 bytes"),
    "half a byte": (entry(dtype=b'"F4"', shape=b"[5]"), "F4 [5] does not fill its 2 bytes"),
    "gap at the beginning": (entry(shape=b"[1]", offsets=b"[1,2]"), "'a' leaves a gap before it"),
    "gap in the middle": (
        framed(b"{" + A + b',"c":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}', b"xxxx"),
        "'c' leaves a gap before it",
    ),
    "gap before a tensor of no bytes": (entry(shape=b"[0]", offsets=b"[2,2]"), "'a' leaves a gap before it"),
    "overlap": (
        framed(b"{" + A + b',"c":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', b"xxx"),
        "'c' overlaps the one before it",
    ),
    "the same bytes twice": (
        framed(b"{" + A + b',"c":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}', b"xx"),
        "'c' overlaps the one before it",
    ),
    "one inside another": (
        framed(b"{" + A + b"," + B + b',"c":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"xxxx"),
        "overlaps the one before it",
    ),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def read(path: Path, content: bytes) -> SafetensorsHeader:
    path.write_bytes(content)
    return read_header(path)


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_is_refused_by_its_own_rule(file: Path, content: bytes, message: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read(file, content)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [entry(offsets=b"[-0,2]"), entry(shape=b"[-0]", offsets=b"[0,0]")[:-2]],
    ids=["offset of minus zero", "size of minus zero"],
)
def test_minus_zero_is_refused(file: Path, content: bytes) -> None:
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(content)
    with pytest.raises(CheckpointError):
        read(file, content)


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


# The dtypes of the oldest reference parser that is supported.
DTYPES = sorted(DTYPE_BITS.keys() - {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"})

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+|\s+|.', re.DOTALL)
NUMBER = re.compile(rb"-?\d+")
MEMBERS = [re.compile(rb'"[^"]*":\s*\{[^{}]*\}'), re.compile(rb'"[^"]*":\s*(?:\[[^\]]*\]|"[^"]*")')]
TOKENS = [
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"[" * 200, b"null", b"true"),
    *(b"0", b"1", b"2", b"4", b"8", b"16", b"-1", b"01", b"1.0", b"1e0", b"1e400", b"NaN", b"Infinity", b"1" * 5000),
    *(str(number).encode() for number in (2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 100_000_000)),
    *(
        b'""',
        b'"a"',
        b'"b"',
        b'"1"',
        b'"\xc3\xa9"',
        b'"\\ud800"',
        b'"\\ud83d\\ude00"',
        b'"\\u0000"',
        b'"\x01"',
        b'".."',
    ),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"format"', b"{}", b"[]", b'"U8":', b'"k":"v",'),
    *(f'"{dtype}"'.encode() for dtype in ("BOOL", "U8", "F16", "BF16", "F32", "I64", "F8_E4M3", "u8", "U9")),
]


@st.composite
def well_formed(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The header and the data of a small file that every parser accepts."""
    fields: dict[str, object] = {}
    if draw(st.booleans()):
        fields["__metadata__"] = draw(st.sampled_from([{}, {"format": "pt"}, {"k": "", "format": "pt"}]))
    position = 0
    for name in draw(st.lists(st.sampled_from(["a", "b", "layers.0.weight", "é"]), unique=True, max_size=3)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 3), max_size=3))
        begin, position = position, position + prod(shape) * DTYPE_BITS[dtype] // 8
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, position]}
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    header = json.dumps(fields, separators=separators, ensure_ascii=draw(st.booleans())).encode()
    return header, bytes(byte % 251 for byte in range(position))


def edit_tokens(draw: st.DrawFn, header: bytes) -> bytes:
    """*header* with one of its tokens removed, doubled, exchanged for another, or counted up or down."""
    tokens = TOKEN.findall(header) or [b""]
    at, other = draw(st.integers(0, len(tokens) - 1)), draw(st.integers(0, len(tokens) - 1))
    edit = draw(st.sampled_from(["remove", "double", "swap", "replace", "insert", "count", "count"]))
    if edit == "remove":
        del tokens[at]
    elif edit == "double":
        tokens.insert(at, tokens[at])
    elif edit == "swap":
        tokens[at], tokens[other] = tokens[other], tokens[at]
    elif edit == "replace":
        tokens[at] = draw(st.sampled_from(TOKENS))
    elif edit == "insert":
        tokens.insert(at, draw(st.sampled_from(TOKENS)))
    else:
        numbers = [i for i, token in enumerate(tokens) if NUMBER.fullmatch(token) and len(token) < 20]
        if numbers:
            i = numbers[at % len(numbers)]
            tokens[i] = str(int(tokens[i]) + draw(st.sampled_from([-2, -1, 1, 2, 2**64]))).encode()
    return b"".join(tokens)


def edit_members(draw: st.DrawFn, header: bytes) -> bytes:
    """*header* with one name and its value removed, or put in once more, here or elsewhere."""
    members = list(draw(st.sampled_from(MEMBERS)).finditer(header))
    if not members:
        return header
    member, other = draw(st.sampled_from(members)), draw(st.sampled_from(members))
    if draw(st.booleans()):
        return header[: member.start()] + header[member.end() :].lstrip(b", ")
    return header[: other.start()] + member[0] + b"," + header[other.start() :]


def edit_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """*content* with one byte flipped, removed or inserted, or cut off."""
    at = draw(st.integers(0, len(content)))
    edit = draw(st.sampled_from(["flip", "remove", "insert", "cut"]))
    if edit == "flip" and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
    if edit == "insert":
        return content[:at] + bytes([draw(st.integers(0, 255))]) + content[at:]
    return content[:at] + (content[at + 1 :] if edit == "remove" else b"")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A well-formed file after up to three edits; mostly with a length field that fits its header."""
    header, data = draw(well_formed())
    for edit in draw(st.lists(st.sampled_from(["tokens", "tokens", "members", "header", "data"]), max_size=3)):
        if edit == "tokens":
            header = edit_tokens(draw, header)
        elif edit == "members":
            header = edit_members(draw, header)
        elif edit == "header":
            header = edit_bytes(draw, header)
        else:
            data = edit_bytes(draw, data)
    content = framed(header, data)
    return edit_bytes(draw, content) if draw(st.integers(0, 9)) == 0 else content


def test_what_the_reference_rejects_is_refused_and_the_rest_is_read_alike(file: Path) -> None:
    verdicts: Counter[tuple[str, str]] = Counter()

    @settings(max_examples=FUZZ_EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(mutated())
    def check(content: bytes) -> None:
        try:
            reference = {
                name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
                for name, tensor in safetensors.deserialize(content)
            }
        except safetensors.SafetensorError:
            with pytest.raises(CheckpointError):
                read(file, content)
            verdicts["rejected", "refused"] += 1
            return
        try:
            header = read(file, content)
        except CheckpointError:
            verdicts["accepted", "refused"] += 1
            return
        assert {e.name: (e.dtype, e.shape, content[e.begin : e.end]) for e in header.entries} == reference
        verdicts["accepted", "accepted"] += 1

    check()
    # All three kinds of mutant must have been met, or the comparison above says nothing.
    assert verdicts["rejected", "refused"] > FUZZ_EXAMPLES // 5
    assert verdicts["accepted", "accepted"] > FUZZ_EXAMPLES // 20
    assert verdicts["accepted", "refused"] > 0
