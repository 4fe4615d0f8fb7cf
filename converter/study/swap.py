"""A mask and its compensation in a resident model: the edits that a conversion would write, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..compensation import Fits
from ..errors import VerificationError
from ..mask import HeadMask
from ..model.resident import Change, ResidentModel
from ..rewrite.plan import make_plan

if TYPE_CHECKING:
    import torch


@contextmanager
def swapped(model: ResidentModel, checkpoint: Checkpoint, mask: HeadMask, fits: Fits) -> Iterator[None]:
    """Let *model* be *checkpoint*'s conversion by *mask* and *fits* inside the block, and as it was afterwards.

    Raises:
        CheckpointError: a compensated weight is beyond the range of its stored dtype.
        VerificationError: other heads are silent than the mask prunes.
    """
    edits = make_plan(checkpoint, mask, fits, ()).edits
    with model.changed(Change(edit.tensor, edit.first, edit.count, edit.transform) for edit in edits):
        for layer, pruned in enumerate(mask.pruned):
            silent = model.silent_heads(layer)
            if silent != pruned:
                raise VerificationError(
                    f"layer {layer}: heads {list(silent)} are silent, not {list(pruned)} as the mask says"
                )
        yield


def relative_change(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> float:
    """||after - before|| / ||before||, over all of them.

    Raises:
        VerificationError: it is zero, so what was changed is not in effect.
    """
    changed = sum(float((new.double() - old.double()).square().sum()) for old, new in zip(before, after, strict=True))
    whole = sum(float(old.double().square().sum()) for old in before)
    if not changed > 0:
        raise VerificationError("the logits are those of the unpruned model, so the heads that go said nothing")
    return float((changed / whole) ** 0.5)
