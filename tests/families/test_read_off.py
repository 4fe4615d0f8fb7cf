"""Of every family, masks and compensations are read off the weights alone.

A mask a family and compensation; ``MASKS=100 pytest tests/families/test_read_off.py`` takes a hundred, by turns.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from s4convert import Checkpoint, HeadMask, convert, verify_conversion
from s4convert.compensation import MODES
from tests.families.fixtures import FIXTURES, Fixture
from tests.families.test_families import DTYPES
from tests.jobs.test_verify_anything import moments
from tests.support.environments import in_the_newest_environment
from tests.support.modes import MAPS

pytestmark = in_the_newest_environment


def random_mask(fixture: Fixture, dice: np.random.Generator) -> HeadMask:
    """Any number of heads in each of 3 layers, one of them at least, and no layer's all."""
    heads = fixture.num_heads
    while True:
        counts = dice.integers(0, heads, 3)
        if counts.any():
            drawn = (dice.choice(heads, count, replace=False) for count in counts)
            return HeadMask(heads, tuple(tuple(sorted(map(int, layer))) for layer in drawn))


def weights(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(path.glob("*.safetensors"))]


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda fixture: fixture.name)
def test_mask_and_compensation_are_read_off(fixture: Fixture, tmp_path: Path) -> None:
    dice = np.random.Generator(np.random.PCG64(FIXTURES.index(fixture)))
    modes = [mode for mode in MAPS if fixture.num_heads == fixture.num_kv_heads or not MODES[mode].own_values]
    source = fixture.write(tmp_path, DTYPES["bf16" if FIXTURES.index(fixture) % 2 else "fp16"])
    statistics = moments(Checkpoint.open(source).geometry.num_columns("o"))
    for number in range(int(os.environ.get("MASKS", 1))):
        mask, mode = random_mask(fixture, dice), modes[(FIXTURES.index(fixture) + number) % len(modes)]
        settings = {"check_behaviour": False, "card": False, "allow_name": True, "statistics": statistics}
        convert(source, tmp_path / "out", mask, compensation=mode, **settings)
        (tmp_path / "out" / "s4convert.json").unlink()
        report = verify_conversion(source, tmp_path / "out", check_behaviour=False)
        assert report.mask.pruned == mask.pruned
        if report.compensation != mode:  # as where a single head is kept: then they must be one
            convert(source, tmp_path / "same", mask, compensation=report.compensation, **settings)
            assert weights(tmp_path / "same") == weights(tmp_path / "out"), (mode, report.compensation)
            shutil.rmtree(tmp_path / "same")
        shutil.rmtree(tmp_path / "out")
