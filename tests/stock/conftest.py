"""The tests in this directory need LLaVA itself, so only the environment of ``make stock`` collects them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import s4convert
from s4convert.demo import MINI_LLAVA
from s4convert.mask import HeadMask
from tests.conftest import MINI_PRUNED
from tests.support.original_layout import write_original_layout

collect_ignore_glob = [] if find_spec("llava") else ["test_*.py"]


@pytest.fixture(scope="package")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mini LLaVA in the original layout, for reading only; LLaVA wants its own name in the directory's."""
    directory = tmp_path_factory.mktemp("stock") / "llava-mini"
    write_original_layout(MINI_LLAVA, directory, directory.with_name("tower"), num_shards=2)
    return directory


@pytest.fixture(scope="package", params=["none", "scale"])
def compensation(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="package")
def converted(original: Path, compensation: str) -> Path:
    """*original* without the heads of ``mini_mask``, for reading only; every check passed."""
    out = original.with_name(f"llava-mini-{compensation}")
    s4convert.convert(original, out, HeadMask(8, MINI_PRUNED), compensation=compensation)
    return out
