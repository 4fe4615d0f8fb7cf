"""What became of a checkpoint's heads, and why two checkpoints are not the two sides of a conversion.

The causes, as scripts see them: ``identical`` and ``not-pruned`` (the converted checkpoint still is the original, or
has all its heads), ``swapped``, ``another-original``, ``another-layout``, ``another-dtype``, ``another-mask``,
``manifest-has-another-mask``, ``rows-left`` (heads that are silent by ``o_proj`` alone) and ``damaged``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from ..checkpoint import Checkpoint, StoredTensor
from ..errors import MaskError, S4ConvertError, VerificationError
from ..mask import HeadMask
from .definition import read_some, sampled_rows

FEW_ROWS = 8  # of a tensor, where it is only asked whether another model's stands there
BLOCK_BYTES = 4 << 20


@contextmanager
def naming_the_cause(
    original: Checkpoint, converted: Checkpoint, mask: HeadMask, stated: HeadMask | None = None
) -> Iterator[None]:
    """Where a check fails, say that the two are swapped, that one is not pruned, or by another mask, if that is why.

    *stated* is the mask in *converted*'s manifest, if it has one.

    Raises:
        VerificationError: a check failed.
    """
    try:
        yield
    except VerificationError as error:
        try:
            _tell_the_cause(original, converted, mask, stated)
            check_same_model(original, converted)
        except VerificationError as cause:
            raise cause from error
        except S4ConvertError:  # what is wrong is worse than that
            pass
        raise


def silenced_heads(original: Checkpoint, converted: Checkpoint) -> HeadMask:
    """The heads that are silent in *converted* and were not in *original*, as a mask.

    A head that both have silent counts where its rows of ``q_proj`` became zero.

    Raises:
        VerificationError: there is none, or all heads of a layer are; the message says what the two are instead.
        CheckpointError, StorageError: a weight cannot be read.
    """
    check_same_model(original, converted)
    layers = range(original.geometry.num_layers)
    before, after = ([_silent_heads(side, layer) for layer in layers] for side in (original, converted))
    fallen_silent = [
        (new - old) | {head for head in new & old if _lost_its_queries(original, converted, layer, head)}
        for layer, (old, new) in enumerate(zip(before, after, strict=True))
    ]
    if not any(fallen_silent):
        _tell_that_nothing_is_pruned(original, converted, before, after)
    try:
        return HeadMask(original.geometry.num_heads, tuple(tuple(sorted(heads)) for heads in fallen_silent))
    except MaskError as error:
        raise VerificationError(f"{converted.known_as}: by its silent heads, {error}", cause="damaged") from error


def check_same_model(original: Checkpoint, converted: Checkpoint) -> None:
    """Refuse a *converted* of another model: some rows of all tensors that no conversion touches are looked at.

    Raises:
        VerificationError: it has other names or another dtype, or was made from another original.
        StorageError: a weight cannot be read.
    """
    untouched = [name for name, tensor in original.tensors.items() if original.projections_in(tensor) is None]
    missing = [name for name in original.tensors if name not in converted.tensors]
    if 2 * len(missing) > len(original.tensors):
        raise VerificationError(
            f"{converted.known_as}: names its tensors otherwise than {original.known_as}: {len(missing)} of "
            f"{len(original.tensors)} are not there, the first is {missing[0]}; save both by the same code",
            cause="another-layout",
        )
    others, first = 0, ""
    for name in untouched:
        before, after = original.tensors[name], converted.tensors.get(name)
        if after is not None and after.shape == before.shape and after.dtype != before.dtype:
            raise VerificationError(
                f"{converted.known_as}: {name} is stored as {after.dtype}, and as {before.dtype} in "
                f"{original.known_as}, so its bytes cannot be compared; give the two in one dtype",
                cause="another-dtype",
            )
        if not _alike(original, before, converted, after):
            others, first = others + 1, first or name
    if 2 * others > len(untouched):
        raise VerificationError(
            f"{converted.known_as}: was made from another original than {original.known_as}: {others} of "
            f"{len(untouched)} tensors that no conversion touches differ, the first is {first}; give the one that it "
            "was made from",
            cause="another-original",
        )


def check_masks_agree(converted: Checkpoint, mask: HeadMask, stated: HeadMask) -> None:
    """Raise VerificationError where the mask *stated* in *converted*'s manifest is not the given *mask*."""
    for layer, (given, said) in enumerate(zip(mask.pruned, stated.pruned, strict=True)):
        if given != said:
            raise VerificationError(
                f"{converted.known_as}: its manifest has another mask than the one given: layer {layer} loses "
                f"{_listed(said)} there, where the mask takes {_listed(given)}; leave `mask` out to check by the "
                "manifest",
                cause="manifest-has-another-mask",
            )


def _tell_the_cause(original: Checkpoint, converted: Checkpoint, mask: HeadMask, stated: HeadMask | None) -> None:
    before, after = (
        [_silent_heads(checkpoint, layer) for layer in range(mask.num_layers)] for checkpoint in (original, converted)
    )
    fallen_silent = [new - old for old, new in zip(before, after, strict=True)]
    if not any(fallen_silent):
        _tell_that_nothing_is_pruned(original, converted, before, after)
    for layer, (found, old) in enumerate(zip(fallen_silent, before, strict=True)):
        asked = set(mask.pruned[layer]) - old
        if found != asked:
            by_manifest = stated is not None and stated.pruned != mask.pruned
            raise VerificationError(
                f"{converted.known_as}: was pruned by another mask"
                f"{', and its manifest has another than the one given' if by_manifest else ''}: layer {layer} has lost "
                f"{_listed(found)}, where the mask takes {_listed(asked)}; give the mask that it was made by, or "
                "convert again",
                cause="manifest-has-another-mask" if by_manifest else "another-mask",
            )


def _tell_that_nothing_is_pruned(
    original: Checkpoint, converted: Checkpoint, before: list[set[int]], after: list[set[int]]
) -> None:
    """Raise VerificationError: no head fell silent from *before* to *after*, the silent heads of each layer."""
    if any(old - new for old, new in zip(before, after, strict=True)):
        raise VerificationError(
            f"{original.known_as}: has silent heads that {converted.known_as} has not; the two are swapped, give the "
            "original first",
            cause="swapped",
        )
    different = [
        name
        for name in sorted(original.tensors.keys() | converted.tensors.keys())
        if not _same_bytes(original, original.tensors.get(name), converted, converted.tensors.get(name))
    ]
    if not different:
        raise VerificationError(
            f"{converted.known_as}: is byte-identical to {original.known_as} in all {len(original.tensors)} tensors: "
            "nothing was pruned; give the converted checkpoint",
            cause="identical",
        )
    raise VerificationError(
        f"{converted.known_as}: is not pruned, no head became silent in it; {len(different)} of "
        f"{len(original.tensors)} tensors differ, the first is {different[0]}; give the converted checkpoint",
        cause="not-pruned",
    )


def _silent_heads(checkpoint: Checkpoint, layer: int) -> set[int]:
    """The heads of *layer* with more zeros than other numbers in ``o_proj``: one of those is damage, and no head."""
    output = checkpoint.output_projection(layer)
    rows = read_some(checkpoint, output, sampled_rows(output.num_rows))
    is_zero = (rows == 0).reshape(len(rows), checkpoint.geometry.num_heads, -1)
    return {int(head) for head in np.flatnonzero(is_zero.mean(axis=(0, 2)) > 0.5)}


def _lost_its_queries(original: Checkpoint, converted: Checkpoint, layer: int, head: int) -> bool:
    """Whether the rows of *head* in ``q_proj`` became zero."""

    def has_queries(checkpoint: Checkpoint) -> bool:
        rows = checkpoint.projection(layer, "q", "weight")
        assert rows is not None, "a checkpoint without it cannot be opened"
        width = checkpoint.geometry.head_dim
        return bool(checkpoint.read_rows(rows.tensor, rows.first + head * width, width).any())

    return has_queries(original) and not has_queries(converted)


def _alike(original: Checkpoint, before: StoredTensor, converted: Checkpoint, after: StoredTensor | None) -> bool:
    """Whether two tensors are of one kind, and some of their rows the same."""
    if after is None or (after.dtype, after.shape) != (before.dtype, before.shape):
        return False
    rows = {before.num_rows * part // FEW_ROWS for part in range(FEW_ROWS)} if before.num_rows else set[int]()
    return all(original.read_bytes(before, row, 1) == converted.read_bytes(after, row, 1) for row in rows)


def _same_bytes(
    original: Checkpoint, before: StoredTensor | None, converted: Checkpoint, after: StoredTensor | None
) -> bool:
    """Whether two tensors are there, of one kind, and have the same bytes."""
    if before is None or after is None or (after.dtype, after.shape) != (before.dtype, before.shape):
        return False
    step = before.num_rows if not before.is_contiguous else max(1, BLOCK_BYTES // max(1, before.row_bytes))
    blocks = ((first, min(step, before.num_rows - first)) for first in range(0, before.num_rows, max(1, step)))
    return all(original.read_bytes(before, *at) == converted.read_bytes(after, *at) for at in blocks)


def _listed(heads: Collection[int]) -> str:
    return f"heads {', '.join(map(str, sorted(heads)))}" if heads else "no head"
