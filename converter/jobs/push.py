"""The main job and the way to the Hub behind it, as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..hub.push import PushReport, check_access, push
from ..mask import HeadMask
from ..verify.report import Report
from .convert import ConvertOptions, convert
from .options import options_of


def convert_and_push(
    source: Path | str,
    out: Path | str,
    mask: Path | str | HeadMask | None,
    repo_id: str,
    options: ConvertOptions | None = None,
    *,
    command: Sequence[str] | None = None,
    on_written: Callable[[Report], object] = lambda _: None,
    **settings: Any,
) -> tuple[Report, PushReport]:
    """:func:`~s4convert.jobs.convert.convert`, then :func:`~s4convert.hub.push.push` to *repo_id* on the Hub.

    Whether the token may write there is asked first. *on_written* is called with the report when OUT stands: a push
    that fails takes nothing from it.

    Raises:
        UsageError: hidden states are not to be checked: only what was verified is pushed.
        S4ConvertError: as both jobs say.
    """
    options = options_of(ConvertOptions, options, settings)
    if not options.check_behaviour:
        raise UsageError("only what was verified is pushed; leave `check_behaviour=False` out, or push later")
    check_access(repo_id)
    report = convert(source, out, mask, options, command=command)
    on_written(report)
    return report, push(out, repo_id, progress=options.progress)
