"""Tests that take long, and whose outcome no version of a library decides, run in one of the environments."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec

import pytest

_HAS_LLAVA = find_spec("llava") is not None
_IS_LOWEST = version("torch").startswith("2.1.")  # of make test-lowest
_REASON = "it takes long, and the other environment runs it"

in_the_newest_environment = pytest.mark.skipif(_HAS_LLAVA or _IS_LOWEST, reason=_REASON)
in_llavas_environment = pytest.mark.skipif(not _HAS_LLAVA, reason=_REASON)
with_a_newer_torch = pytest.mark.skipif(
    _IS_LOWEST, reason="torch 2.1 cannot write such a file, or refuses or orders it in its own way"
)
