"""What is left of a model, in sentences that say how it was measured: those of the card and of the HTML report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

NOT_MEASURED = (
    "Nobody knows yet: no question was asked and no text was held out. Convert with --evaluate FILE or --probe FILE, "
    "or run s4convert evaluate on the two directories."
)


def as_command(advice: str) -> str:
    """*advice* with the command line's flag in the place of the parameter."""
    return re.sub(r"`compensation='([a-z-]+)'`", r"`--compensate \1`", advice)


def what_is_left(evaluation: Mapping[str, Any] | None, verification: Mapping[str, Any]) -> list[str]:
    """A sentence for each measurement that there is, an *evaluation* and a *verification* as the manifest has them.

    The built-in probe is no measurement of a model: it is too small.
    """
    agreement, behaviour = verification.get("agreement"), verification["behaviour"] or {}
    lines = []
    if evaluation is not None:
        before, after = (evaluation["checkpoints"][name]["accuracy"] for name in ("original", "converted"))
        change = evaluation["checkpoints"]["converted"]["changed"]["accuracy"]
        lines.append(
            f"Of {after['count']} questions, the original answers {before['percent']:.1f} % right and the converted "
            f"model {after['percent']:.1f} %: {_change(change)}."
        )
    if agreement is not None:
        read = agreement.get("answers", agreement)
        after, of = read["converted"], "" if read is agreement else " of answers"
        lines.append(
            f"On {read['num_tokens']:,} held-out tokens{of}, both find the same next token most likely in "
            f"{after['top1']:.1%} of the places; the KL divergence to the original is {after['kl']:.3g} nats a token."
        )
    files = behaviour.get("data", {}).get("files")
    if files:
        said, names = behaviour["next_token"], ", ".join(file["file"] for file in files)
        after = said["converted"]
        lines.append(
            f"On {said['text_tokens']:,} tokens of text of {names}, the probe, both find the same next token most "
            f"likely in {after['top1']:.1%} of the places; the KL divergence to the original is {after['kl']:.3g} nats "
            f"a token{_perplexity(said['original']['perplexity'], after['perplexity'])}."
        )
    return lines


def _perplexity(before: float | None, after: float | None) -> str:
    known = before is not None and after is not None
    return f", and the text's perplexity goes from {before:.4g} to {after:.4g}" if known else ""


def _change(change: Mapping[str, Any]) -> str:
    text = f"{change['points']:+.1f} points"
    if not change["kept"]:
        return f"{text}, which is more than chance explains"
    least = f"; a loss of {-change['low']:.1f} points cannot be ruled out" if change["low"] < 0 else ""
    return f"{text}, which is no more than chance explains{least}"
