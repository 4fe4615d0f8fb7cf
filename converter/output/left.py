"""What is left of a model, in sentences that say how it was measured: those of the card and of the HTML report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOT_MEASURED = (
    "Nobody knows yet: no question was asked and no text was held out. Convert with --evaluate FILE, or run s4convert "
    "evaluate on the two directories."
)


def as_command(advice: str) -> str:
    """*advice* with the command line's flag in the place of the parameter."""
    return re.sub(r"`compensation='([a-z-]+)'`", r"`--compensate \1`", advice)


def what_is_left(evaluation: Mapping[str, Any] | None, agreement: Mapping[str, Any] | None) -> list[str]:
    """A sentence for each measurement that there is, an *evaluation* and an *agreement* as the manifest has them."""
    lines = []
    if evaluation is not None:
        before, after = (evaluation["checkpoints"][name]["accuracy"] for name in ("original", "converted"))
        change = evaluation["checkpoints"]["converted"]["changed"]["accuracy"]
        lines.append(
            f"Of {after['count']} questions, the original answers {before['percent']:.1f} % right and the converted "
            f"model {after['percent']:.1f} %: {_change(change)}."
        )
    if agreement is not None:
        after = agreement["converted"]
        lines.append(
            f"On {agreement['num_tokens']:,} held-out tokens, both find the same next token most likely in "
            f"{after['top1']:.1%} of the places; the KL divergence to the original is {after['kl']:.3g} nats a token."
        )
    return lines


def _change(change: Mapping[str, Any]) -> str:
    text = f"{change['points']:+.1f} points"
    if not change["kept"]:
        return f"{text}, which is more than chance explains"
    least = f"; a loss of {-change['low']:.1f} points cannot be ruled out" if change["low"] < 0 else ""
    return f"{text}, which is no more than chance explains{least}"
