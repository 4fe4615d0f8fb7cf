"""Mutated safetensors headers and indexes: none is read that the reference rejects, and what is read is read alike.

``python -m tests.battery.headers`` makes a million of them and prints the counts. The reference for a file is the
``safetensors`` package, and for an index what stock transformers makes of it. Mutants grow from the files in
tests/attacks/headers and tests/attacks/indexes, one for each rule, and from small ones that are made at random.
"""

from __future__ import annotations

import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import click
import safetensors

from s4convert.checkpoint.safetensors_header import DTYPE_BITS, read_header
from s4convert.checkpoint.shards import open_shards
from s4convert.errors import CheckpointError

ATTACKS = Path(__file__).parents[1] / "attacks"
MOST_SEED_BYTES = 2000  # of a file that mutants grow from; larger ones take long and show no more
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
SHOWN = 10  # mutants that should not have been read

REJECTED, ACCEPTED = "rejected", "accepted"
RIGHT = ((REJECTED, "refused"), (ACCEPTED, "refused"), (ACCEPTED, "read"))
OUTCOMES = (*RIGHT, (REJECTED, "read"), (ACCEPTED, "read otherwise"))

# The dtypes of the oldest reference parser that is supported.
DTYPES = sorted(DTYPE_BITS.keys() - {"F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64"})

TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+|\s+|.', re.DOTALL)
NUMBER = re.compile(rb"-?\d+")
MEMBERS = (re.compile(rb'"[^"]*":\s*\{[^{}]*\}'), re.compile(rb'"[^"]*":\s*(?:\[[^\]]*\]|"[^"]*")'))
TOKENS = (
    *(b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\xef\xbb\xbf", b"\xff", b"[" * 200, b"null", b"true"),
    *(b"0", b"1", b"2", b"4", b"8", b"16", b"-1", b"-0", b"01", b"1.0", b"1e0", b"1e400", b"NaN", b"Infinity"),
    *(str(number).encode() for number in (2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 100_000_000)),
    *(b'""', b'"a"', b'"b"', b'"1"', b'"\xc3\xa9"', b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\x01"'),
    *(b'"dtype"', b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"format"', b"{}", b"[]", b'"U8":', b'"k":"v",'),
    *(f'"{dtype}"'.encode() for dtype in ("BOOL", "U8", "F16", "BF16", "F32", "I64", "F8_E4M3", "u8", "U9")),
    *(b'".."', b'"../a"', b'"/etc/passwd"', b'"a/b"', b'"weight_map"', b'"metadata"', b'"' + b"9" * 5000 + b'"'),
    *(b'"%b"' % name.encode() for name in (*SHARDS, "model-00003-of-00002.safetensors", INDEX)),
    b"1" * 5000,
)


def framed(header: bytes, data: bytes = b"") -> bytes:
    """A file of *header*, whatever it is, and *data*."""
    return len(header).to_bytes(8, "little") + header + data


def seeds(folder: str) -> list[bytes]:
    """The files of tests/attacks/*folder* that mutants grow from."""
    paths = sorted(path for path in (ATTACKS / folder).rglob("*") if path.is_file())
    return [path.read_bytes() for path in paths if path.stat().st_size <= MOST_SEED_BYTES]


def mutated_file(rng: random.Random, grown_from: list[bytes]) -> bytes:
    """A file after up to three edits, mostly with a length field that fits its header."""
    content = rng.choice(grown_from) if rng.random() < 0.4 else _well_formed(rng)
    length = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + length], content[8 + length :]
    for _ in range(rng.randrange(4)):
        edit = rng.choice((_edit_tokens, _edit_tokens, _edit_members, _edit_bytes, None))
        if edit is None:
            data = _edit_bytes(rng, data)
        else:
            header = edit(rng, header)
    content = framed(header, data)
    return _edit_bytes(rng, content) if rng.random() < 0.1 else content


def mutated_index(rng: random.Random, grown_from: list[bytes]) -> bytes:
    """An index after up to three edits."""
    content = rng.choice(grown_from)
    for _ in range(rng.randrange(4)):
        content = rng.choice((_edit_tokens, _edit_tokens, _edit_members, _edit_bytes))(rng, content)
    return content


def _well_formed(rng: random.Random) -> bytes:
    """A small file that every parser accepts."""
    fields: dict[str, object] = {}
    if rng.random() < 0.5:
        fields["__metadata__"] = rng.choice(({}, {"format": "pt"}, {"k": "", "format": "pt"}))
    position = 0
    for name in rng.sample(("a", "b", "layers.0.weight", "é"), rng.randrange(4)):
        dtype, shape = rng.choice(DTYPES), [rng.randrange(4) for _ in range(rng.randrange(4))]
        begin, position = position, position + prod(shape) * DTYPE_BITS[dtype] // 8
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, position]}
    separators = rng.choice(((",", ":"), (", ", ": ")))
    header = json.dumps(fields, separators=separators, ensure_ascii=rng.random() < 0.5).encode()
    return framed(header, bytes(byte % 251 for byte in range(position)))


def _edit_tokens(rng: random.Random, text: bytes) -> bytes:
    """*text* with one of its tokens removed, doubled, exchanged for another, or counted up or down."""
    tokens = TOKEN.findall(text) or [b""]
    at, other = rng.randrange(len(tokens)), rng.randrange(len(tokens))
    edit = rng.choice(("remove", "double", "swap", "replace", "insert", "count", "count"))
    if edit == "remove":
        del tokens[at]
    elif edit == "double":
        tokens.insert(at, tokens[at])
    elif edit == "swap":
        tokens[at], tokens[other] = tokens[other], tokens[at]
    elif edit == "replace":
        tokens[at] = rng.choice(TOKENS)
    elif edit == "insert":
        tokens.insert(at, rng.choice(TOKENS))
    else:
        numbers = [i for i, token in enumerate(tokens) if len(token) < 20 and NUMBER.fullmatch(token)]
        if numbers:
            i = numbers[at % len(numbers)]
            tokens[i] = str(int(tokens[i]) + rng.choice((-2, -1, 1, 2, 2**64))).encode()
    return b"".join(tokens)


def _edit_members(rng: random.Random, text: bytes) -> bytes:
    """*text* with one name and its value removed, or put in once more, here or elsewhere."""
    members = list(rng.choice(MEMBERS).finditer(text))
    if not members:
        return text
    member, other = rng.choice(members), rng.choice(members)
    if rng.random() < 0.5:
        return text[: member.start()] + text[member.end() :].lstrip(b", ")
    return text[: other.start()] + member[0] + b"," + text[other.start() :]


def _edit_bytes(rng: random.Random, content: bytes) -> bytes:
    """*content* with one byte flipped, removed or inserted, or cut off."""
    at = rng.randint(0, len(content))
    edit = rng.choice(("flip", "remove", "insert", "cut"))
    if edit == "flip" and at < len(content):
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if edit == "insert":
        return content[:at] + bytes([rng.randrange(256)]) + content[at:]
    return content[:at] + (content[at + 1 :] if edit == "remove" else b"")


def compare_file(content: bytes, path: Path) -> tuple[str, str]:
    """(what the reference makes of a file of *content*, what s4convert does), which reads it at *path*."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except CheckpointError:
        header = None
    try:
        reference = {
            name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
            for name, tensor in safetensors.deserialize(content)
        }
    except safetensors.SafetensorError:
        return REJECTED, "refused" if header is None else "read"
    if header is None:
        return ACCEPTED, "refused"
    found = {e.name: (e.dtype, e.shape, content[e.begin : e.end]) for e in header.entries}
    return ACCEPTED, "read" if found == reference else "read otherwise"


def write_shards(directory: Path) -> None:
    """Two shards, of the tensors a and b, and c, for the indexes in tests/attacks/indexes."""
    for shard, names in zip(SHARDS, ("ab", "c"), strict=True):
        fields = {name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for at, name in enumerate(names)}
        (directory / shard).write_bytes(framed(json.dumps(fields).encode(), bytes(len(names))))


def compare_index(content: bytes, directory: Path) -> tuple[str, str]:
    """(what stock transformers makes of an index of *content*, what s4convert does), beside :func:`write_shards`."""
    from transformers.utils.hub import get_checkpoint_shard_files

    (directory / INDEX).write_bytes(content)
    try:
        shards, _, _ = open_shards(directory, {INDEX, *SHARDS})
    except CheckpointError:
        shards = None
    try:
        paths, _ = get_checkpoint_shard_files(str(directory), str(directory / INDEX))
        for path in paths:
            safetensors.deserialize(Path(path).read_bytes())
    except Exception:  # stock code raises errors of many kinds at malformed indexes
        return REJECTED, "refused" if shards is None else "read"
    if shards is None:
        return ACCEPTED, "refused"
    is_same = {str(directory / name) for name in shards} == set(map(str, paths))
    return ACCEPTED, "read" if is_same else "read otherwise"


@dataclass
class Compared:
    """How often the two did what, and the mutants that s4convert should not have read as it did."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[bytes] = field(default_factory=list)


def compare_many(
    make: Callable[[random.Random], bytes], compare: Callable[[bytes], tuple[str, str]], count: int, seed: int
) -> Compared:
    """What *compare* gives for *count* mutants that *make* makes."""
    rng, compared = random.Random(seed), Compared()
    for _ in range(count):
        content = make(rng)
        outcome = compare(content)
        compared.outcomes[outcome] += 1
        if outcome not in RIGHT:
            compared.wrong.append(content)
    return compared


def compare_files(count: int, seed: int, directory: Path) -> Compared:
    """The outcomes of *count* mutated files, written into *directory* one after the other."""
    grown_from, path = seeds("headers"), directory / "model.safetensors"
    return compare_many(lambda rng: mutated_file(rng, grown_from), lambda text: compare_file(text, path), count, seed)


def compare_indexes(count: int, seed: int, directory: Path) -> Compared:
    """The outcomes of *count* mutated indexes, written into *directory* one after the other."""
    grown_from = seeds("indexes")
    write_shards(directory)
    return compare_many(
        lambda rng: mutated_index(rng, grown_from), lambda text: compare_index(text, directory), count, seed
    )


@click.command()
@click.option("--files", default=1_000_000, show_default=True, help="Mutated safetensors files.")
@click.option("--indexes", default=100_000, show_default=True, help="Mutated indexes.")
@click.option("--seed", default=0, show_default=True)
def main(files: int, indexes: int, seed: int) -> None:
    """Compare mutated headers and indexes with what the reference makes of them, and print the counts."""
    wrong = 0
    for what, compare, count in (("headers", compare_files, files), ("indexes", compare_indexes, indexes)):
        with tempfile.TemporaryDirectory() as scratch:
            began = time.monotonic()
            found = compare(count, seed, Path(scratch))
            click.echo(f"{count:,} mutated {what} in {time.monotonic() - began:.0f} s, seed {seed}:")
        for reference, ours in OUTCOMES:
            click.echo(f"  {found.outcomes[reference, ours]:>9,}  {reference} by the reference, {ours} by s4convert")
        for content in found.wrong[:SHOWN]:
            click.echo(f"  wrong: {content!r}")
        wrong += len(found.wrong)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
