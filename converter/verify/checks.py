"""Both checks of a converted checkpoint, one after the other."""

from __future__ import annotations

import os

from ..checkpoint import Checkpoint
from ..compensation import Compensation
from ..mask import HeadMask
from ..progress import byte_bar, layer_bar
from .report import Report
from .structure import check_structure


def check_converted(
    original: Checkpoint,
    converted: Checkpoint,
    mask: HeadMask,
    compensation: Compensation,
    *,
    check_behaviour: bool,
    card: frozenset[str] = frozenset(),
    jobs: int,
    progress: bool,
) -> Report:
    """Check *converted*'s bytes, and its hidden states where *check_behaviour* is on.

    The files *card* are its model card's, which are not the original's.

    Raises:
        VerificationError: the first thing that is wrong.
        StorageError: a file cannot be read.
    """
    total = sum(stamp.size for stamp in converted.stamps.values())
    with byte_bar("check", total, shown=progress) as bar:
        structure = check_structure(original, converted, mask, compensation, card=card, jobs=jobs, progress=bar.update)
    if not check_behaviour:
        return Report(mask, structure, None)
    # Imported here, because transformers takes seconds to import and --no-verify does without.
    from . import behaviour
    from .probe import make_probe

    with layer_bar("probe", original.geometry.num_layers, shown=progress) as bar:
        figures = behaviour.check_behaviour(
            original, converted, mask, compensation, make_probe(original), progress=bar.update
        )
    return Report(mask, structure, figures)


def default_jobs() -> int:
    """Threads that keep the disk and the processors busy."""
    return min(8, max(2, os.cpu_count() or 2))
