"""Why two checkpoints are not the two sides of a conversion, as far as their silent heads tell."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import S4ConvertError, VerificationError
from ..mask import HeadMask
from .definition import read_some, sampled_rows


@contextmanager
def naming_the_cause(original: Checkpoint, converted: Checkpoint, mask: HeadMask) -> Iterator[None]:
    """Where a check fails, say that the two are swapped, that one is not pruned, or by another mask, if that is why.

    Raises:
        VerificationError: a check failed.
    """
    try:
        yield
    except VerificationError as error:
        try:
            cause = _cause(original, converted, mask)
        except S4ConvertError:  # what is wrong is worse than that
            cause = None
        if cause is None:
            raise
        raise VerificationError(cause) from error


def _cause(original: Checkpoint, converted: Checkpoint, mask: HeadMask) -> str | None:
    before, after = (
        [_silent_heads(checkpoint, layer) for layer in range(mask.num_layers)] for checkpoint in (original, converted)
    )
    fallen_silent = [new - old for old, new in zip(before, after, strict=True)]
    if not any(fallen_silent):
        if any(old - new for old, new in zip(before, after, strict=True)):
            return (
                f"{original.known_as}: has silent heads that {converted.known_as} has not; the two are swapped, give "
                "the original first"
            )
        return f"{converted.known_as}: is not pruned, no head became silent in it; give the converted checkpoint"
    for layer, (found, old) in enumerate(zip(fallen_silent, before, strict=True)):
        asked = set(mask.pruned[layer]) - old
        if found != asked:
            return (
                f"{converted.known_as}: was pruned by another mask: layer {layer} has lost {_listed(found)}, where the "
                f"mask takes {_listed(asked)}; give the mask that it was made by, or convert again"
            )
    return None


def _silent_heads(checkpoint: Checkpoint, layer: int) -> set[int]:
    """The heads of *layer* with more zeros than other numbers in ``o_proj``: one of those is damage, and no head."""
    output = checkpoint.output_projection(layer)
    rows = read_some(checkpoint, output, sampled_rows(output.num_rows))
    is_zero = (rows == 0).reshape(len(rows), checkpoint.geometry.num_heads, -1)
    return {int(head) for head in np.flatnonzero(is_zero.mean(axis=(0, 2)) > 0.5)}


def _listed(heads: Collection[int]) -> str:
    return f"heads {', '.join(map(str, sorted(heads)))}" if heads else "no head"
