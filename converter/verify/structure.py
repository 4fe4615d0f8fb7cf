"""Is the converted checkpoint, byte for byte, what the mask asks of the original?

Written from the definition of an edit (see :func:`expected_rows`), not from the plan: a mistake in the plan
or the writer must not be able to vouch for itself.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..checkpoint import INDEX_FILE, Checkpoint, StoredTensor, read_json_object
from ..checkpoint.dtypes import ITEM_BYTES, Float64Array, decode, encode, unit_in_last_place
from ..checkpoint.files import read_span
from ..checkpoint.safetensors_header import SafetensorsHeader
from ..compensation import HeadMix
from ..compensation.training import TrainedRows
from ..errors import StorageError, VerificationError
from ..progress import Advance
from .claim import Claim

BLOCK_BYTES = 256 << 10  # small enough to stay in the processor's cache between the comparison and the hash


@dataclass(frozen=True)
class StructureReport:
    """What the structure check saw: *digests* maps every file to its (size, sha256)."""

    digests: Mapping[str, tuple[int, str]]
    identical_tensors: int
    edited_tensors: int
    sidecars: int


def check_structure(claim: Claim, *, jobs: int, advance: Advance) -> StructureReport:
    """Compare the converted checkpoint with the original, every byte of every file, by *jobs* threads.

    Same files, same headers, tensors, dtypes, shapes and head counts; sidecars and tensors that the mask does not
    touch are byte-identical; touched ones hold :func:`expected_rows`, and in each touched layer a byte is another.
    *advance* is told the number of bytes of every piece that is done.

    Raises:
        VerificationError: the difference in the first layer that has one, by file and tensor, or any other; or a layer
            is what it was.
        StorageError: a file cannot be read.
    """
    original, converted = claim.original, claim.converted
    _check_files(claim)
    if converted.geometry != original.geometry:
        raise VerificationError(f"{converted.path}: its geometry is not the original's; convert again")
    stop = threading.Event()
    with ThreadPoolExecutor(max_workers=jobs, thread_name_prefix="check") as executor:
        checks = {name: executor.submit(_check_file, claim, name, stop, advance) for name in converted.stamps}
        try:
            seen = {name: checks[name].result() for name in sorted(checks)}
        except OSError as error:
            raise StorageError(f"{error.filename or 'a file'}: cannot be read: {error.strerror}") from error
        finally:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
    differences = [each.difference for each in seen.values() if each.difference is not None]
    if differences:
        raise VerificationError(min(differences, key=lambda difference: difference.layer).message)
    for layer in claim.mask.touched_layers:
        if not any(layer in each.changed_layers for each in seen.values()):
            raise VerificationError(
                f"{converted.path}: layer {layer}: pruning {len(claim.mask.pruned[layer])} heads changed no byte, they "
                "were silent already; check the mask"
            )
    digests = {name: (converted.stamps[name].size, each.digest) for name, each in seen.items()}
    edited = sum(_touched_layer(claim, tensor) is not None for tensor in original.tensors.values())
    sidecars = len(set(original.sidecars) - claim.own_files)
    return StructureReport(digests, len(original.tensors) - edited, edited, sidecars)


@dataclass(frozen=True, eq=False)
class ExpectedRows:
    """What rows must be after a conversion: the stored bytes *data*.

    Where *rounded* [rows, columns] is on, the number must instead be within one unit in the last place of *exact*, a
    sum in float64, whose last bits may differ from one computation to another. Where there is no *exact* one, these
    numbers are judged elsewhere. *rounded* is None where every byte is certain.
    """

    data: bytes
    exact: Float64Array | None = None
    rounded: npt.NDArray[np.bool_] | None = None

    def first_difference(self, found: bytes, dtype: str) -> int | None:
        """The first byte at which *found*, stored as *dtype*, is not what it must be, or None."""
        if found == self.data:
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


def expected_rows(claim: Claim, tensor: StoredTensor, first: int, data: bytes) -> ExpectedRows:
    """What the rows *data* of the original's *tensor*, from row *first* on, must be after the conversion.

    A map that was recovered from the converted columns was compared with all of them then, and says nothing more of
    single numbers; of weights that were trained, all that they must be by themselves is zero where a head is pruned.
    """
    original, mask = claim.original, claim.mask
    layer, held = original.projections_in(tensor) or (0, ())
    if not held or not mask.pruned[layer]:
        return ExpectedRows(data)
    mix, trained, is_recovered = (
        claim.fits.mixes[layer],
        claim.fits.trained.get(layer, {}),
        layer in claim.fits.recovered,
    )
    if held[0].projection == "o":
        if held[0].kind == "bias":
            return ExpectedRows(data)
        if "o" in trained:
            return _expected_trained_columns(tensor, first, data, trained["o"], mix, is_recovered=is_recovered)
        values = decode(data, tensor.dtype).reshape(-1, tensor.shape[1])
        return _expected_columns(values, tensor.dtype, mix, is_recovered=is_recovered)
    geometry = original.geometry
    rows = np.frombuffer(bytearray(data), np.uint8).reshape(-1, tensor.row_bytes)
    numbers = np.arange(first, first + len(rows))
    is_free = np.zeros(len(rows), np.bool_)
    for part in held:
        silenced: npt.NDArray[np.intp] = np.array(mask.pruned[layer])
        if part.projection != "q":  # kv heads of which every query head is pruned
            pruned_of = np.bincount(silenced // geometry.heads_per_group, minlength=geometry.num_kv_heads)
            silenced = np.flatnonzero(pruned_of == geometry.heads_per_group)
        within = (part.first <= numbers) & (numbers < part.first + part.count)
        is_silenced = within & np.isin((numbers - part.first) // geometry.head_dim, silenced)
        if part.kind == "weight" and part.projection in trained and within.any():
            begin, count = int(numbers[within][0]) - part.first, int(within.sum())
            given = trained[part.projection].read(begin, count)
            rows[within] = np.frombuffer(given, np.uint8).reshape(count, -1)
            is_free |= within & ~is_silenced & is_recovered
        rows[is_silenced] = 0
        if part.projection == "v" and mix.values is not None:
            return _expected_values(original, tensor, numbers, part.first, rows.tobytes(), mix)
    if is_free.any():
        return ExpectedRows(rows.tobytes(), None, np.repeat(is_free[:, None], math.prod(tensor.shape[1:]), axis=1))
    return ExpectedRows(rows.tobytes())


def _expected_trained_columns(
    tensor: StoredTensor, first: int, data: bytes, trained: TrainedRows, mix: HeadMix, *, is_recovered: bool
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


def _expected_columns(values: npt.NDArray[np.float32], dtype: str, mix: HeadMix, *, is_recovered: bool) -> ExpectedRows:
    """Rows of ``o_proj``: pruned columns are +0; kept ones times their factor, plus the pruned ones' transfer."""
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


def _expected_values(
    original: Checkpoint,
    tensor: StoredTensor,
    numbers: npt.NDArray[np.intp],
    first_value: int,
    data: bytes,
    mix: HeadMix,
) -> ExpectedRows:
    """Rows *numbers* of a tensor whose value heads begin at row *first_value*; *data* has the silenced ones zeroed."""
    assert mix.values is not None
    exact = decode(data, tensor.dtype).astype(np.float64).reshape(len(numbers), -1)
    rounded = np.zeros(exact.shape, np.bool_)
    for at, number in enumerate(numbers - first_value):
        head, within = divmod(int(number), mix.head_dim)
        if number < 0 or head not in mix.mixed_values:
            continue
        exact[at] = 0.0
        for source in np.flatnonzero(mix.values[head]):
            row = first_value + int(source) * mix.head_dim + within
            exact[at] += mix.values[head, source] * original.read_rows(tensor, row, 1).ravel().astype(np.float64)
        rounded[at] = True
    return ExpectedRows(data, exact, rounded)


def _check_files(claim: Claim) -> None:
    original, converted = claim.original, claim.converted
    expected, found = set(original.stamps), set(converted.stamps)
    if claim.rebuilt:  # as the .bin files of an original are, into as many files as the conversion was told
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
        if converted.stamps[name].size != original.stamps[name].size:
            raise VerificationError(f"{converted.path / name}: its size is not the original's; convert again")


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
    index = converted.path / INDEX_FILE
    if index.is_file() and not isinstance(read_json_object(index).get("metadata"), dict):
        raise VerificationError(f"{index}: has no metadata, which stock loaders read; convert again")


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


def _touched_layer(claim: Claim, tensor: StoredTensor | None) -> int | None:
    """The layer that loses heads and that the original's *tensor* holds projections of, or None."""
    part = None if tensor is None else claim.original.projections_in(tensor)
    return part[0] if part is not None and claim.mask.pruned[part[0]] else None


@dataclass(frozen=True)
class _Difference:
    """What is wrong with a file; *layer* is the touched layer that it is in, or the number of layers."""

    layer: int
    message: str


@dataclass(frozen=True)
class _Seen:
    """What was seen of one file: its sha256, the touched layers in which a byte changed, and what is wrong first."""

    digest: str
    changed_layers: frozenset[int]
    difference: _Difference | None


def _check_file(claim: Claim, name: str, stop: threading.Event, advance: Advance) -> _Seen:
    """Compare one file of the converted checkpoint.

    It is read to its end, as the layers do not stand in their order there.
    """
    original, converted = claim.original, claim.converted
    digest, changed = hashlib.sha256(), set[int]()
    difference: _Difference | None = None
    with ExitStack() as files:
        file = files.enter_context((converted.path / name).open("rb", 0))
        is_copied = _is_copied(claim, name) and name not in claim.own_files
        before = files.enter_context((original.path / name).open("rb", 0)) if is_copied else None
        for span in _spans(claim, name):
            touched = _touched_layer(claim, span.tensor)
            layer = original.geometry.num_layers if touched is None else touched
            for at in range(0, span.size, span.step):
                if stop.is_set():
                    return _Seen("", frozenset(), None)  # nobody waits for it any more
                size = min(span.step, span.size - at)
                found = read_span(file.fileno(), span.begin + at, size, converted.path / name)
                if span.tensor is not None:
                    first, count = at // span.tensor.row_bytes, size // span.tensor.row_bytes
                    rows = original.read_bytes(span.tensor, first, count)
                    if found != rows:
                        changed.add(layer)
                    wanted = expected_rows(claim, span.tensor, first, rows)
                elif before is not None:
                    wanted = ExpectedRows(read_span(before.fileno(), span.begin + at, size, original.path / name))
                else:
                    wanted = ExpectedRows(found)
                off = wanted.first_difference(found, span.tensor.dtype if span.tensor is not None else "")
                if off is not None and (difference is None or layer < difference.layer):
                    difference = _Difference(layer, _first_difference(claim, name, span, span.begin + at + off))
                digest.update(found)
                advance(size)
    return _Seen(digest.hexdigest(), frozenset(changed), difference)


@dataclass(frozen=True)
class _Span:
    """Bytes of a file of the converted checkpoint, from *begin* on, and what they are compared with.

    *tensor* is the original's tensor that they hold; without one, they are the same bytes of the original's file of
    that name, or, where it has no such file, a header or index, whose content was checked when it was read.
    """

    begin: int
    size: int
    tensor: StoredTensor | None

    @property
    def step(self) -> int:
        """How many bytes to compare at a time: whole rows of a tensor."""
        if self.tensor is None:
            return BLOCK_BYTES
        if not self.tensor.is_contiguous:
            return self.size  # gathering its rows means to read all of it
        return max(1, BLOCK_BYTES // self.tensor.row_bytes) * self.tensor.row_bytes


def _spans(claim: Claim, name: str) -> Iterator[_Span]:
    """The file cut into spans: each touched tensor its own and what is between them as one, or each tensor its own."""
    original, converted = claim.original, claim.converted
    is_copied = _is_copied(claim, name)
    shard = (original if is_copied else converted).shards.get(name)
    position = 0
    for entry in shard.entries if shard is not None else ():
        tensor = original.tensors[entry.name]
        if (is_copied and _touched_layer(claim, tensor) is None) or entry.begin == entry.end:
            continue
        yield _Span(position, entry.begin - position, None)
        yield _Span(entry.begin, entry.end - entry.begin, tensor)
        position = entry.end
    yield _Span(position, converted.stamps[name].size - position, None)


def _is_copied(claim: Claim, name: str) -> bool:
    """Whether the file of that name was a file of the original, byte for byte but for what is edited in it."""
    is_new = claim.rebuilt and (name in claim.converted.shards or name == INDEX_FILE)
    return name in claim.original.stamps and not is_new


def _first_difference(claim: Claim, name: str, span: _Span, byte: int) -> str:
    converted = claim.converted
    where = f"{converted.path / name}, byte {byte}"
    for entry in converted.shards[name].entries if name in converted.shards else ():
        if entry.begin <= byte < entry.end:
            where = f"{converted.path / name}: {entry.name}"
    layer = _touched_layer(claim, span.tensor)
    if layer is not None:
        return f"{where} of layer {layer} is not what the mask asks for; convert again"
    return f"{where} is not the original's; convert again"
