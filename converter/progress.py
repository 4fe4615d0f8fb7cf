"""Progress bars on stderr, which show only where the user asked for them and stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from tqdm import tqdm

# Its argument is the work done since the last call.
Advance = Callable[[int], object]


def byte_bar(description: str, total: int, *, shown: bool) -> tqdm[NoReturn]:
    """A bar over *total* bytes."""
    return tqdm(total=total, desc=description, unit="B", unit_scale=True, disable=_disable(shown))


def layer_bar(description: str, total: int, *, shown: bool) -> tqdm[NoReturn]:
    """A bar over *total* decoder layers."""
    return tqdm(total=total, desc=description, unit="layer", disable=_disable(shown))


def sample_bar(description: str, total: int, *, shown: bool) -> tqdm[NoReturn]:
    """A bar over *total* calibration samples."""
    return tqdm(total=total, desc=description, unit="sample", disable=_disable(shown))


def second_bar(description: str, seconds: float, *, shown: bool) -> tqdm[NoReturn]:
    """A bar over *seconds* of a search."""
    form = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s{postfix}"
    return tqdm(total=seconds, desc=description, bar_format=form, disable=_disable(shown))


def step_bar(description: str, total: int, *, shown: bool) -> tqdm[NoReturn]:
    """A bar over *total* steps of a training."""
    return tqdm(total=total, desc=description, unit="step", disable=_disable(shown))


def _disable(shown: bool) -> bool | None:
    if not shown or sys.stderr is None:  # the parent process closed it
        return True
    return None  # tqdm then checks whether stderr is a terminal
