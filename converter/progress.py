"""Progress bars on stderr, shown only where someone asked for them and stderr is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from tqdm import tqdm

# Told how much more is done.
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


def _disable(shown: bool) -> bool | None:
    if not shown or sys.stderr is None:  # closed by whoever started us
        return True
    return None  # lets tqdm look whether stderr is a terminal
