"""Is the converted checkpoint, byte for byte, what the mask asks of the original?

Written from the definition of an edit (see :func:`expected_rows`), not from the plan: a mistake in the plan
or the writer must not be able to vouch for itself.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..checkpoint import INDEX_FILE, Checkpoint, StoredTensor
from ..checkpoint.checkpoint import FileStamp
from ..checkpoint.dtypes import ITEM_BYTES, Float64Array, decode, encode, every_value, unit_in_last_place
from ..checkpoint.safetensors_header import SafetensorsHeader, read_header
from ..checkpoint.tensors import TensorEntry
from ..compensation import HeadMix
from ..compensation.training import TrainedRows
from ..disk import read_into
from ..errors import CheckpointError, VerificationError, reading
from ..one_pass import BLOCK_BYTES, Begun, Step, go_over
from ..progress import Advance
from .claim import Claim, Terms

# Of a weight, from which on it is cheaper to look its numbers up in a table of all products than to multiply them.
TABLE_BYTES = 1 << 20
LOOKED_UP_ROWS = 8  # at a time: numpy makes an index of 8 bytes of each number


@dataclass(frozen=True)
class StructureReport:
    """What the structure check saw: *digests* maps every file to its (size, sha256)."""

    digests: Mapping[str, tuple[int, str]]
    identical_tensors: int
    edited_tensors: int
    sidecars: int


class ByteChecks:
    """Compares the files in *directory* with what *terms* ask for, byte for byte, and keeps what was seen of each.

    A file is checked while it is written, through :meth:`steps`, or when it stands, by :func:`check_structure`: then
    *converted* is the checkpoint there.
    """

    def __init__(self, terms: Terms, directory: Path, converted: Checkpoint | None = None) -> None:
        self._terms = terms
        self._directory = directory
        self._converted = converted
        self._comparisons: dict[str, _Comparison] = {}
        self._seen: dict[str, _Seen] = {}

    def steps(self, name: str) -> Iterator[Step]:
        """The steps in which the file *name*, which stands at its full size with its header, is checked.

        Raises:
            VerificationError: the header of a shard that was built is not sound, or not of the original's tensors.
        """
        comparison = self._comparisons[name] = _Comparison(self._terms, self._directory, name, self._converted)
        return comparison.steps()

    def seen(self, name: str, sha256: str, status: os.stat_result) -> None:
        """Keep what was seen of the file *name*; a file whose status is another than *status* was changed since."""
        comparison = self._comparisons.pop(name)
        difference = min(comparison.differences, key=lambda found: (found.layer, found.byte), default=None)
        self._seen[name] = _Seen(
            FileStamp.from_status(status), sha256, frozenset(comparison.changed_layers), difference, comparison.entries
        )

    def unseen(self, converted: Checkpoint) -> tuple[str, ...]:
        """The files of *converted*, which stands in the directory, that were not seen as they are now."""
        return tuple(
            name
            for name, stamp in converted.stamps.items()
            if (seen := self._seen.get(name)) is None
            or seen.stamp != stamp
            or (name in converted.shards and seen.entries != converted.shards[name].entries)
        )

    def of(self, converted: Checkpoint) -> dict[str, _Seen]:
        """What was seen of every file of *converted*, by name in the order of names."""
        return {name: self._seen[name] for name in sorted(converted.stamps)}


def check_structure(claim: Claim, checks: ByteChecks, *, jobs: int, advance: Advance) -> StructureReport:
    """Compare the converted checkpoint with the original, every byte of every file, by *jobs* threads.

    Same files, same headers, tensors, dtypes, shapes and head counts; sidecars and tensors that the mask does not
    touch are byte-identical; touched ones hold :func:`expected_rows`, and in each touched layer a byte is another.
    What *checks* have seen while it was written, and is as it was then, is not read again. *advance* is told the number
    of bytes of every piece that is done.

    Raises:
        VerificationError: the difference in the first layer that has one, by file and tensor, or any other; or a layer
            is what it was.
        CheckpointError: the hash of a shard that no edit is in is not the one that its source names.
        StorageError: a file cannot be read.
    """
    original, converted = claim.original, claim.converted
    _check_files(claim)
    if converted.geometry != original.geometry:
        raise VerificationError(f"{converted.path}: its geometry is not the original's; convert again")
    unseen = [_Standing(name, converted.stamps[name].size, converted.path, checks) for name in checks.unseen(converted)]
    with reading(converted.path):
        go_over(unseen, jobs=jobs, advance=advance)
    seen = checks.of(converted)
    differences = [each.difference for each in seen.values() if each.difference is not None]
    if differences:
        raise VerificationError(min(differences, key=lambda difference: difference.layer).message)
    for layer in claim.mask.touched_layers:
        if not any(layer in each.changed_layers for each in seen.values()):
            raise VerificationError(
                f"{converted.path}: layer {layer}: pruning {len(claim.mask.pruned[layer])} heads changed no byte, they "
                "were silent already; check the mask"
            )
    for name in original.shards:
        known = original.known_sha256(name)
        if name in seen and not seen[name].changed_layers and known not in (None, seen[name].digest):
            raise CheckpointError(f"{original.path / name}: is not what its sha256 {known} names; download it again")
    digests = {name: (converted.stamps[name].size, each.digest) for name, each in seen.items()}
    edited = sum(_touched_layer(claim.terms, tensor) is not None for tensor in original.tensors.values())
    sidecars = len(set(original.sidecars) - claim.own_files)
    return StructureReport(digests, len(original.tensors) - edited, edited, sidecars)


@dataclass
class _Standing:
    """A file that stands in *directory* already, for a pass over it."""

    name: str
    size: int
    directory: Path
    checks: ByteChecks
    status: os.stat_result | None = None

    def begin(self) -> Begun:
        descriptor = os.open(self.directory / self.name, os.O_RDONLY)
        try:
            self.status = os.fstat(descriptor)
            return Begun(descriptor, self.status.st_size, iter(()), self.checks.steps(self.name))
        except BaseException:
            os.close(descriptor)
            raise

    def written(self, descriptor: int) -> None:
        """It was, before."""

    def passed(self, descriptor: int, begin: int, size: int) -> None:
        """Nothing is to be done with what was read."""

    def end(self, descriptor: int, sha256: str) -> None:
        assert self.status is not None
        self.checks.seen(self.name, sha256, self.status)


@dataclass(frozen=True, eq=False)
class ExpectedRows:
    """What rows must be after a conversion: the stored bytes *data*.

    Where *rounded* [rows, columns] is on, the number must instead be within one unit in the last place of *exact*, a
    sum in float64, whose last bits may differ from one computation to another. Where there is no *exact* one, these
    numbers are judged elsewhere. *rounded* is None where every byte is certain.
    """

    data: bytes | memoryview
    exact: Float64Array | None = None
    rounded: npt.NDArray[np.bool_] | None = None

    def first_difference(self, found: memoryview, dtype: str) -> int | None:
        """The first byte at which *found*, stored as *dtype*, is not what it must be, or None."""
        if _same(found, self.data):
            return None
        unequal = np.frombuffer(found, np.uint8) != np.frombuffer(self.data, np.uint8)
        if self.rounded is not None:
            near = self.rounded
            if self.exact is not None:
                values = decode(found, dtype).astype(np.float64).reshape(self.exact.shape)
                with np.errstate(invalid="ignore"):
                    near = near & (np.abs(values - self.exact) <= unit_in_last_place(self.exact, dtype))
            unequal &= ~np.repeat(near.ravel(), ITEM_BYTES[dtype])
        return int(np.argmax(unequal)) if unequal.any() else None


def expected_rows(terms: Terms, tensor: StoredTensor, first: int, data: memoryview) -> ExpectedRows:
    """What the rows *data* of the original's *tensor*, from row *first* on, must be after the conversion.

    *data* may be changed, and is part of the result. A map that was recovered from the converted columns was compared
    with all of them then, and says nothing more of single numbers; of weights that were trained, all that they must be
    by themselves is zero where a head is pruned.
    """
    original, mask = terms.original, terms.mask
    layer, held = original.projections_in(tensor) or (0, ())
    if not held or not mask.pruned[layer]:
        return ExpectedRows(data)
    fits, is_recovered = terms.fits, layer in terms.fits.recovered
    mix, trained = fits.mixes[layer], fits.trained.get(layer, {})
    if held[0].projection == "o":
        if held[0].kind == "bias":
            return ExpectedRows(data)
        if "o" in trained:
            return _expected_trained_columns(tensor, first, data, trained["o"], mix, is_recovered=is_recovered)
        return _expected_columns(data, tensor, mix, is_recovered=is_recovered)
    rows = np.frombuffer(data, np.uint8).reshape(-1, tensor.row_bytes)
    is_free = np.zeros(len(rows), np.bool_)
    for part in held:
        begin, end = max(part.first, first), min(part.first + part.count, first + len(rows))
        if part.kind == "weight" and part.projection in trained and begin < end:
            given = trained[part.projection].read(begin - part.first, end - begin)
            rows[begin - first : end - first] = np.frombuffer(given, np.uint8).reshape(end - begin, -1)
            is_free[begin - first : end - first] = is_recovered
        for head in _silenced_heads(terms, layer, part.projection):
            row = part.first + head * original.geometry.head_dim - first
            silenced = slice(max(row, 0), max(row + original.geometry.head_dim, 0))
            rows[silenced] = 0
            is_free[silenced] = False
        if part.projection == "v" and mix.values is not None:
            numbers = np.arange(first, first + len(rows))
            return _expected_values(original, tensor, numbers, part.first, data, mix)
    if is_free.any():
        return ExpectedRows(data, None, np.repeat(is_free[:, None], math.prod(tensor.shape[1:]), axis=1))
    return ExpectedRows(data)


def _silenced_heads(terms: Terms, layer: int, projection: str) -> Iterator[int]:
    """The heads of ``q``, or the kv heads of ``k`` and ``v`` of which every query head is pruned."""
    pruned, shared = terms.mask.pruned[layer], terms.original.geometry.heads_per_group
    if projection == "q":
        yield from pruned
    else:
        silent = Counter(head // shared for head in pruned)
        yield from (head for head, count in silent.items() if count == shared)


def _expected_trained_columns(
    tensor: StoredTensor, first: int, data: memoryview, trained: TrainedRows, mix: HeadMix, *, is_recovered: bool
) -> ExpectedRows:
    """Rows of ``o_proj`` from row *first* on, of a training: pruned columns are +0, kept ones what it made."""
    item, num_rows = ITEM_BYTES[tensor.dtype], len(data) // tensor.row_bytes
    rows = np.frombuffer(bytearray(trained.read(first, num_rows)), np.uint8).reshape(num_rows, -1, item)
    rows[:, mix.pruned_columns] = 0
    if not is_recovered:
        return ExpectedRows(rows.tobytes())
    is_free = np.zeros(rows.shape[:2], np.bool_)
    is_free[:, mix.kept_columns] = True
    return ExpectedRows(rows.tobytes(), None, is_free)


def _expected_columns(data: memoryview, tensor: StoredTensor, mix: HeadMix, *, is_recovered: bool) -> ExpectedRows:
    """Rows of ``o_proj``: pruned columns are +0; kept ones times their factor, plus the pruned ones' transfer."""
    dtype, columns = tensor.dtype, tensor.shape[1]
    if mix.transfer is None and not is_recovered:
        kept = mix.factors[mix.kept_columns]
        is_one = len(kept) > 0 and bool((kept == kept[0]).all())
        if is_one and tensor.entry.num_bytes >= TABLE_BYTES and ITEM_BYTES[dtype] == 2:
            numbers = np.frombuffer(data, "<u2").reshape(-1, mix.num_heads, mix.head_dim)
            for row in range(0, len(numbers), LOOKED_UP_ROWS):
                some = numbers[row : row + LOOKED_UP_ROWS]
                np.take(_times(dtype, float(kept[0])), some, out=some, mode="clip")
            numbers[:, list(mix.pruned)] = 0
            return ExpectedRows(data)
    values = decode(data, dtype).reshape(-1, columns)
    is_free = np.zeros(values.shape, np.bool_)
    is_free[:, mix.kept_columns] = True
    if mix.transfer is None:
        with np.errstate(over="ignore", invalid="ignore"):
            products = values * mix.factors
        products[:, mix.pruned_columns] = 0.0
        return ExpectedRows(encode(products, dtype), None, is_free if is_recovered else None)
    exact = values.astype(np.float64) * mix.factors.astype(np.float64)
    exact[:, mix.kept_columns] += values[:, mix.pruned_columns].astype(np.float64) @ mix.transfer
    exact[:, mix.pruned_columns] = 0.0
    return ExpectedRows(encode(exact, dtype), None if is_recovered else exact, is_free)


@lru_cache(maxsize=64)
def _times(dtype: str, factor: float) -> npt.NDArray[np.uint16]:
    """Every number of 16 bits times *factor*, rounded as it is stored; a large weight has each of them many times."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(encode(every_value(dtype) * np.float32(factor), dtype), "<u2")


def _expected_values(
    original: Checkpoint,
    tensor: StoredTensor,
    numbers: npt.NDArray[np.intp],
    first_value: int,
    data: memoryview,
    mix: HeadMix,
) -> ExpectedRows:
    """Rows *numbers* of a tensor whose value heads begin at row *first_value*; *data* has the silenced ones zeroed."""
    assert mix.values is not None
    exact = decode(data, tensor.dtype).astype(np.float64).reshape(len(numbers), -1)
    rounded, rows = np.zeros(exact.shape, np.bool_), np.frombuffer(data, np.uint8).reshape(len(numbers), -1)
    for at, number in enumerate(numbers - first_value):
        head, within = divmod(int(number), mix.head_dim)
        if number < 0 or head not in mix.mixed_values:
            continue
        exact[at] = 0.0
        for source in np.flatnonzero(mix.values[head]):
            row = first_value + int(source) * mix.head_dim + within
            exact[at] += mix.values[head, source] * original.read_rows(tensor, row, 1).ravel().astype(np.float64)
        rounded[at] = True
        rows[at] = np.frombuffer(encode(exact[at], tensor.dtype), np.uint8)
    return ExpectedRows(data, exact, rounded)


def _check_files(claim: Claim) -> None:
    original, converted = claim.original, claim.converted
    expected, found = set(original.stamps), set(converted.stamps)
    if claim.terms.rebuilt:  # as the .bin files of an original are, into as many files as the conversion was told
        _check_rebuilt(original, converted)
        expected, found = set(original.sidecars) - {INDEX_FILE}, set(converted.sidecars) - {INDEX_FILE}
    expected, found = expected - claim.own_files, found - claim.own_files
    for name in sorted(expected ^ found):
        state = "is missing" if name in expected else "does not stand in the original"
        raise VerificationError(f"{converted.path / name}: {state}; convert again")
    for name in converted.left_behind:
        raise VerificationError(
            f"{converted.path / name}: is no part of a conversion and may hold unpruned weights; remove it"
        )
    for name in sorted(expected):
        if name in original.shards and name in converted.shards:
            _check_header(original, converted, name)
        if converted.stamps[name].size != original.stamps[name].size:
            raise VerificationError(f"{converted.path / name}: its size is not the original's; convert again")


def _check_header(original: Checkpoint, converted: Checkpoint, shard: str) -> None:
    """Refuse a *shard* with another header than the original's, by the first tensor that it states otherwise."""
    before, after = ({entry.name: entry for entry in side.shards[shard].entries} for side in (original, converted))
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        place = f"{converted.path / shard}: {name} "
        if one is None or other is None:
            state = "is missing" if other is None else "does not stand in the original"
            raise VerificationError(f"{place}{state}; convert again")
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            stated = f"{other.dtype} {list(other.shape)}, not the original's {one.dtype} {list(one.shape)}"
            raise VerificationError(f"{place}is {stated}; convert again")
        raise VerificationError(f"{place}stands at byte {other.begin}, not the original's {one.begin}; convert again")


def _check_rebuilt(original: Checkpoint, converted: Checkpoint) -> None:
    """Refuse shards that lack a tensor, have one of another kind, or lack what stock loaders read beside them."""
    for name in sorted(set(original.tensors) | set(converted.tensors)):
        before, after = original.tensors.get(name), converted.tensors.get(name)
        if before is None or after is None:
            state = "has no" if after is None else "has another tensor,"
            raise VerificationError(f"{converted.path}: {state} {name}; convert again")
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            raise VerificationError(
                f"{converted.path / after.shard}: {name} is {after.dtype} {list(after.shape)}, not the original's "
                f"{before.dtype} {list(before.shape)}; convert again"
            )
    for shard, header in converted.shards.items():
        if converted.is_torch:  # which no conversion writes, but others may
            _check_apart(converted, shard)
        elif not isinstance(header, SafetensorsHeader) or header.metadata.get("format") != "pt":
            raise VerificationError(f"{converted.path / shard}: its metadata lacks the format pt; convert again")


def _check_apart(converted: Checkpoint, shard: str) -> None:
    """Refuse a torch file in which tensors are not each in one piece, as their bytes are compared piece by piece."""
    end = 0
    for entry in converted.shards[shard].entries:
        if entry.strides is not None or entry.begin < end:
            raise VerificationError(
                f"{converted.path / shard}: {entry.name} shares its bytes with another tensor, or has gaps in it; save "
                "the checkpoint as safetensors"
            )
        end = max(end, entry.end)


def _touched_layer(terms: Terms, tensor: StoredTensor | None) -> int | None:
    """The layer that loses heads and that the original's *tensor* holds projections of, or None."""
    part = None if tensor is None else terms.original.projections_in(tensor)
    return part[0] if part is not None and terms.mask.pruned[part[0]] else None


@dataclass(frozen=True)
class _Difference:
    """What is wrong at *byte* of a file; *layer* is the touched layer that it is in, or the number of layers."""

    layer: int
    byte: int
    message: str


@dataclass(frozen=True)
class _Seen:
    """What was seen of one file while its stamp was *stamp*.

    Its sha256, the touched layers in which a byte changed, what is wrong first, and the tensors that it was taken to
    hold.
    """

    stamp: FileStamp
    digest: str
    changed_layers: frozenset[int]
    difference: _Difference | None
    entries: Sequence[TensorEntry]


@dataclass(frozen=True)
class _Span:
    """Bytes of a file of the converted checkpoint, from *begin* on, and what they are compared with.

    *tensor* is the original's tensor that they hold, and *layer* the touched layer that it is in; without one, they are
    the same bytes of the original's file of that name, or, where it has no such file, a header or index, whose content
    was checked when it was read.
    """

    begin: int
    size: int
    tensor: StoredTensor | None = None
    layer: int | None = None

    @property
    def step(self) -> int:
        """How many bytes to compare at a time: whole rows of a tensor."""
        if self.tensor is None:
            return BLOCK_BYTES
        if not self.tensor.is_contiguous:
            return self.size  # gathering its rows means to read all of it
        return max(1, BLOCK_BYTES // self.tensor.row_bytes) * self.tensor.row_bytes


class _Memory(threading.local):
    """A thread's own, which it uses again and again, so that it stays in the processor's cache."""

    def __init__(self) -> None:
        self.block = bytearray(BLOCK_BYTES)


_memory = _Memory()


class _Comparison:
    """The comparison of the file *name* in *directory*, whose steps come in any order, from several threads.

    It is compared to its end, as the layers do not stand in their order there. *entries* are the tensors that it holds.
    """

    def __init__(self, terms: Terms, directory: Path, name: str, converted: Checkpoint | None) -> None:
        self._terms, self._path, self._name, self._converted = terms, directory / name, name, converted
        is_shard = self._path.suffix == ".safetensors" if converted is None else name in converted.shards
        is_new = terms.rebuilt and (is_shard or name == INDEX_FILE)
        self._is_copied = name in terms.original.stamps.keys() - terms.own_files and not is_new
        self.entries = self._read_entries()
        self.changed_layers = set[int]()
        self.differences: list[_Difference] = []

    def steps(self) -> Iterator[Step]:
        """The steps, which leave no byte of the file out."""
        for span in self._spans():
            size = span.step
            for at in range(0, span.size, size):
                yield Step(span.begin + at, min(size, span.size - at), partial(self._compare, span, at))

    def _read_entries(self) -> Sequence[TensorEntry]:
        original = self._terms.original
        if self._is_copied:
            shard = original.shards.get(self._name)
            return () if shard is None else shard.entries
        if self._name in self._terms.own_files:
            return ()
        if self._converted is not None:
            stands = self._converted.shards.get(self._name)
            return () if stands is None else stands.entries
        if self._path.suffix != ".safetensors":
            return ()
        try:
            entries = read_header(self._path).entries
        except CheckpointError as error:
            raise VerificationError(str(error)) from error
        for entry in entries:
            tensor = original.tensors.get(entry.name)
            if tensor is None or (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
                raise VerificationError(f"{self._path}: {entry.name} is not the original's tensor; convert again")
        return entries

    def _spans(self) -> Iterator[_Span]:
        """The file: each touched tensor its own span and what is between them one, or each tensor its own."""
        position = 0
        for entry in self.entries:
            tensor = self._terms.original.tensors[entry.name]
            layer = _touched_layer(self._terms, tensor)
            if (self._is_copied and layer is None) or entry.begin == entry.end:
                continue
            yield _Span(position, entry.begin - position)
            yield _Span(entry.begin, entry.end - entry.begin, tensor, layer)
            position = entry.end
        yield _Span(position, self._path.stat().st_size - position)

    def _compare(self, span: _Span, at: int, found: memoryview) -> None:
        """Compare what was *found* of *span*, from its byte *at* on."""
        tensor = span.tensor
        if tensor is not None:
            rows = self._rows(tensor, at, len(found))
            if span.layer is not None and span.layer not in self.changed_layers and not _same(found, rows):
                self.changed_layers.add(span.layer)
            off = expected_rows(self._terms, tensor, at // tensor.row_bytes, rows).first_difference(found, tensor.dtype)
        elif self._is_copied:
            off = ExpectedRows(self._originals(self._name, span.begin + at, len(found))).first_difference(found, "")
        else:
            off = None
        if off is not None:
            byte = span.begin + at + off
            layer = self._terms.original.geometry.num_layers if span.layer is None else span.layer
            self.differences.append(_Difference(layer, byte, self._message(span.layer, byte)))

    def _rows(self, tensor: StoredTensor, at: int, size: int) -> memoryview:
        """*size* bytes of the original's *tensor*, from byte *at* on."""
        if tensor.is_contiguous:
            return self._originals(tensor.shard, tensor.entry.begin + at, size)
        return memoryview(self._terms.original.read_bytes(tensor))

    def _originals(self, name: str, begin: int, size: int) -> memoryview:
        """*size* bytes of the original's file *name*, from byte *begin* on, until the thread asks for others."""
        path = f"{self._terms.original.path}/{name}"
        data = memoryview(_memory.block if size <= BLOCK_BYTES else bytearray(size))[:size]
        with reading(path):
            source = os.open(path, os.O_RDONLY)
            try:
                read_into(source, begin, data, path)
            finally:
                os.close(source)
        return data

    def _message(self, layer: int | None, byte: int) -> str:
        where = f"{self._path}, byte {byte}"
        weights = self._terms.original.shards.get(self._name)
        if self._is_copied and isinstance(weights, SafetensorsHeader) and byte < weights.data_begin:
            where = f"{self._path}: byte {byte} of its header"
        for entry in self.entries:
            if entry.begin <= byte < entry.end:
                where = f"{self._path}: {entry.name}"
        if layer is not None:
            return f"{where} of layer {layer} is not what the mask asks for; convert again"
        return f"{where} is not the original's; convert again"


def _same(one: bytes | memoryview, other: bytes | memoryview) -> bool:
    """Whether two pieces of memory hold the same bytes; unlike ``==``, it lets other threads run meanwhile."""
    words = len(one) // 8
    if len(one) != len(other) or bytes(one[8 * words :]) != bytes(other[8 * words :]):
        return False
    return not words or bool((np.frombuffer(one, np.uint64, words) == np.frombuffer(other, np.uint64, words)).all())
