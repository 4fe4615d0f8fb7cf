"""Makes a mask from scores: a schedule says how many heads each layer loses, the scores say which."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

from ..choices import GRANULARITIES
from ..errors import MaskError, UsageError, shown
from ..version import __version__
from .head_mask import SALIENCY, HeadMask
from .head_scores import NORMALISERS, HeadScores, Ladder
from .schedules import Adaptive, Costs, Global, Schedule, describe, least_rate

_log = logging.getLogger(__name__)

NO_GROUPS = (
    "`metric='fisher'` gives costs of single heads, each behind those that went before, which do not add up to those "
    "of groups; use `granularity='head'`, or another metric"
)


def prune_lowest(
    scores: HeadScores,
    schedule: Schedule,
    *,
    granularity: str = "head",
    num_kv_heads: int | None = None,
) -> HeadMask:
    """The mask that prunes the heads with the lowest *scores* in each layer, as many as *schedule* says.

    Of equal scores, the lower head number is pruned first. With *granularity* ``group``, whole kv groups are pruned: a
    group's score is the sum over its heads, and rates count groups, of which a layer has *num_kv_heads*. The schedule
    ``global`` goes by the costs of the scores' ladders; without these, it divides the scores of each layer by their
    normalisers; and without these, it compares them as they are. All arithmetic is exact, so the same scores give the
    same mask on any machine.

    Raises:
        UsageError: the schedule or the groups do not fit the scores.
        MaskError: no head would be pruned.
    """
    heads_per_unit = _heads_per_unit(scores, granularity, num_kv_heads)
    divisors, is_global = scores.normalisers, isinstance(schedule, Global)
    if is_global and divisors is None and scores.ladders is None:
        _log.warning("the scores carry no normalisers, so global compares those of all layers as they are")
    by_unit = _costs(scores, heads_per_unit, divisors if is_global else None)
    costs = [sorted(units) for units in by_unit] if scores.ladders is None else list(map(_growth, scores.ladders))
    counts, pruned = schedule.counts(costs), []
    if not any(counts):
        raise _none_goes(schedule, costs, "head" if granularity == "head" else "kv group")
    for units, count in zip(by_unit, counts, strict=True):
        lowest = sorted(sorted(range(len(units)), key=lambda unit: (units[unit], unit))[:count])
        pruned.append(
            tuple(head for unit in lowest for head in range(unit * heads_per_unit, (unit + 1) * heads_per_unit))
        )
    provenance = _provenance(scores, schedule, granularity, num_kv_heads, normalised=divisors is not None)
    mask = HeadMask(scores.num_heads, tuple(pruned), provenance=provenance)
    return replace(mask, provenance=provenance | {"realised_rate": mask.rate})


def with_saliency(mask: HeadMask, scores: HeadScores) -> HeadMask:
    """*mask* with the *scores* that it was made of in its provenance, rounded to four digits: enough for a picture."""
    rounded = [[float(f"{score:.4g}") for score in row] for row in scores.scores]
    return replace(mask, provenance={**(mask.provenance or {}), SALIENCY: rounded})


def _none_goes(schedule: Schedule, costs: Costs, unit: str) -> MaskError:
    """The error of a *schedule* under which every *unit* stays."""
    least = least_rate(schedule, costs)
    hint = "protect fewer layers"
    if least is not None:
        decimals = f"{math.ceil(least * 10**6) / 10**6:.6f}".rstrip("0")  # a rate is given in decimals
        hint = f"the smallest rate that prunes one is {decimals}"
    return MaskError(
        f"{describe(schedule)} prunes no {unit}, with {len(costs[0])} in each of {len(costs)} layers; {hint}"
    )


def _heads_per_unit(scores: HeadScores, granularity: str, num_kv_heads: int | None) -> int:
    if granularity not in GRANULARITIES:
        raise UsageError(f"`granularity` {shown(granularity)} is none of {', '.join(GRANULARITIES)}")
    if granularity == "head":
        return 1
    if scores.ladders is not None:
        raise UsageError(NO_GROUPS)
    if num_kv_heads is None:
        raise UsageError("`granularity='group'` needs `num_kv_heads`, which scores do not state")
    if num_kv_heads < 1 or scores.num_heads % num_kv_heads:
        raise UsageError(f"{scores.num_heads} heads cannot share {num_kv_heads} kv heads evenly; mend `num_kv_heads`")
    return scores.num_heads // num_kv_heads


def _costs(scores: HeadScores, heads_per_unit: int, divisors: Sequence[float] | None) -> list[list[Fraction]]:
    costs = []
    for layer, row in enumerate(scores.scores):
        divisor = Fraction(1 if divisors is None else divisors[layer])
        exact = [Fraction(score) / divisor for score in row]
        costs.append(
            [sum(exact[first : first + heads_per_unit], Fraction(0)) for first in range(0, len(exact), heads_per_unit)]
        )
    return costs


def _growth(ladder: Ladder) -> list[Fraction]:
    """What each head of *ladder* adds to the cost, in its order; below 0 where the cost falls."""
    cost = [Fraction(0), *map(Fraction, ladder.cost)]
    return [total - before for before, total in pairwise(cost)]


def _provenance(
    scores: HeadScores, schedule: Schedule, granularity: str, num_kv_heads: int | None, *, normalised: bool
) -> dict[str, Any]:
    """The scores' provenance, and how the mask was made from them."""
    inherited: Mapping[str, Any] = scores.provenance or {}
    made: dict[str, Any] = {name: value for name, value in inherited.items() if name != NORMALISERS}
    made["schedule"] = schedule.name
    if schedule.rate is not None:
        made["rate"] = float(schedule.rate)
    if schedule.protect:
        made["protect"] = list(schedule.protect)
    if isinstance(schedule, Adaptive) and schedule.protect_rate is not None:
        made["protect_rate"] = float(schedule.protect_rate)
    if isinstance(schedule, Global) and scores.ladders is None:
        made["normalised"] = normalised
    made["granularity"] = granularity
    if granularity == "group":
        made["num_kv_heads"] = num_kv_heads
    made["tool_version"] = __version__
    return made
