"""Tests that take long, and whose outcome no version of a library decides, run in one of the environments.

With ``TESTS_ALONE=1`` all of them run: there is no other environment, as on another version of Python.
"""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec

import pytest

_HAS_LLAVA = find_spec("llava") is not None
_IS_LOWEST = version("torch").startswith("2.1.")  # of make test-lowest
_IS_ALONE = "TESTS_ALONE" in os.environ
_REASON = "it takes long, and the other environment runs it"

in_the_newest_environment = pytest.mark.skipif(not _IS_ALONE and (_HAS_LLAVA or _IS_LOWEST), reason=_REASON)
in_llavas_environment = pytest.mark.skipif(not _IS_ALONE and not _HAS_LLAVA, reason=_REASON)
with_a_newer_torch = pytest.mark.skipif(
    _IS_LOWEST, reason="torch 2.1 cannot write such a file, or refuses or orders it in its own way"
)
