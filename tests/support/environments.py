"""Tests that take long, and whose outcome no version of a library decides, run in one of the two environments."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

_HAS_LLAVA = find_spec("llava") is not None
_REASON = "it takes long, and the other environment runs it"

in_the_newest_environment = pytest.mark.skipif(_HAS_LLAVA, reason=_REASON)
in_llavas_environment = pytest.mark.skipif(not _HAS_LLAVA, reason=_REASON)
