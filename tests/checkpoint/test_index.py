"""Which indexes of shards are refused, a file per rule; the others are read as stock code reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s4convert.checkpoint.shards import open_shards
from s4convert.errors import CheckpointError
from tests.attacks.rules import REFUSED_INDEXES, STRICTER_INDEXES
from tests.battery.headers import (
    ACCEPTED,
    ATTACKS,
    INDEX,
    REJECTED,
    SHARDS,
    compare_index,
    compare_indexes,
    write_shards,
)

FUZZ_EXAMPLES = 2000
INDEXES = ATTACKS / "indexes"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_shards(tmp_path)
    return tmp_path


@pytest.mark.parametrize("rule", REFUSED_INDEXES)
def test_is_refused_by_its_own_rule(directory: Path, rule: str) -> None:
    content = (INDEXES / "refused" / f"{rule}.json").read_bytes()
    (directory / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(REFUSED_INDEXES[rule])) as caught:
        open_shards(directory, {INDEX, *SHARDS})
    assert str(caught.value).startswith(f"{directory}/")
    assert len(str(caught.value).splitlines()) == 1
    assert compare_index(content, directory) == (ACCEPTED if rule in STRICTER_INDEXES else REJECTED, "refused")


def test_every_file_of_the_corpus_has_its_rule() -> None:
    assert {path.stem for path in (INDEXES / "refused").iterdir()} == REFUSED_INDEXES.keys()


@pytest.mark.parametrize("name", sorted(path.name for path in (INDEXES / "read").iterdir()))
def test_is_read_as_stock_code_reads_it(directory: Path, name: str) -> None:
    assert compare_index((INDEXES / "read" / name).read_bytes(), directory) == (ACCEPTED, "read")


def test_what_stock_code_rejects_is_refused_and_the_rest_is_read_alike(tmp_path: Path) -> None:
    """``python -m tests.battery.headers`` does the same many times over."""
    compared = compare_indexes(FUZZ_EXAMPLES, 1, tmp_path)
    assert compared.wrong == []
    assert compared.outcomes[REJECTED, "refused"] > FUZZ_EXAMPLES // 5
    assert compared.outcomes[ACCEPTED, "read"] > FUZZ_EXAMPLES // 50
    assert compared.outcomes[ACCEPTED, "refused"] > FUZZ_EXAMPLES // 50
