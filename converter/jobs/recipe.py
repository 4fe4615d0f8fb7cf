"""The mask that is made where none is given: which heads go, and how kept heads make up for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint import Checkpoint
from ..choices import RECIPES as NAMES
from ..disk import check_json_name, check_output
from ..errors import UsageError, shown
from ..mask import HeadMask
from ..mask.schedules import Schedule, round_half_up, schedule_of
from .mask import make_mask

if TYPE_CHECKING:
    from .convert import ConvertOptions

_METRIC, _SCHEDULE = "fisher", "global"  # what leaves most of a pretrained model, see docs/compensation.md


@dataclass(frozen=True)
class Recipe:
    """How kept heads make up for those that go (*compensation*), and for how many seconds better heads are searched."""

    compensation: str
    search: int | None = None


RECIPES: Mapping[str, Recipe] = {"fast": Recipe("least-squares"), "best": Recipe("distill", search=60)}


def check_recipe(checkpoint: Checkpoint, options: ConvertOptions) -> HeadMask:
    """Refuse what can be seen to be wrong, and give a mask of about the size of the one that is to be made.

    With it, all else of a conversion can be checked before scores take their time.

    Raises:
        UsageError: an option is missing, or means nothing for a mask that is to be made.
    """
    if options.rate is None and options.schedule is None:
        raise UsageError("give a `mask`; or a `rate` and `calibration` data, to have one made")
    if options.calibration is None:
        raise UsageError("a mask is made by what the model does on `calibration` data; give that, or a `mask`")
    if options.mask_polarity is not None:
        raise UsageError("`mask_polarity` is about a mask file; leave it out, or give the `mask`")
    if options.save_mask is not None:
        check_json_name(Path(options.save_mask))
        check_output(Path(options.save_mask), force=False)
    num_layers, num_heads = checkpoint.geometry.num_layers, checkpoint.geometry.num_heads
    schedule = _schedule(options)
    counts = schedule.counts([[Fraction(0)] * num_heads] * num_layers)
    if not any(counts):
        raise UsageError(f"`rate` {shown(options.rate)} of {num_layers * num_heads} heads is none; give a larger one")
    share = max(1, round_half_up(schedule.rate * num_heads)) if schedule.rate is not None else max(counts)
    return HeadMask(num_heads, (tuple(range(min(share, num_heads - 1))),) * num_layers)


def mask_by_recipe(checkpoint: Checkpoint, options: ConvertOptions) -> HeadMask:
    """The mask that *options* ask for; it is kept in the file ``save_mask``, if there is one.

    Raises:
        S4ConvertError: as :func:`~s4convert.jobs.mask.make_mask` says.
    """
    name = options.recipe or NAMES[0]
    made = make_mask(
        checkpoint.path if checkpoint.repository is None else str(checkpoint.repository),
        metric=_METRIC,
        schedule=_schedule(options),
        calibration=options.calibration,
        images=options.images,
        num_samples=options.num_samples,
        window=options.window,
        device=options.device or "cpu",
        vision_tower=options.vision_tower,
        search=RECIPES[name].search,
        progress=options.progress,
    )
    mask = replace(made.mask, provenance={**(made.mask.provenance or {}), "recipe": name})
    if options.save_mask is not None:
        mask.save(Path(options.save_mask))
    return mask


def _schedule(options: ConvertOptions) -> Schedule:
    given = _SCHEDULE if options.schedule is None else options.schedule
    schedule = schedule_of(given, options.rate)
    assert schedule is not None
    return schedule
