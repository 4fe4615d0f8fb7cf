"""Which indexes of shards are refused, a file per rule; the others are read as stock code reads them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from s4convert.checkpoint.shards import open_shards
from s4convert.errors import CheckpointError
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

# Of each file in tests/attacks/indexes/refused, what it is refused for.
REFUSED = {
    # the JSON
    "empty": "is not JSON (Expecting value",
    "cut-off": "is not JSON (Expecting ',' delimiter",
    "not-JSON": "is not JSON (Expecting property name",
    "not-UTF-8": "is not JSON ('utf-8' codec can't decode byte 0xff",
    "byte-order-mark": "is not JSON (Unexpected UTF-8 BOM",
    "second-object": "is not JSON (Extra data",
    "too-deep": "is not JSON (nested too deeply)",
    "NaN": "is not JSON (NaN is not JSON)",
    "number-too-large": "is not JSON ('1e400' is too large for a float)",
    "number-of-5000-digits": "is not JSON (",
    "minus-zero": "is not JSON (-0 is not an integer)",
    "weight-map-twice": "is not JSON ('weight_map' stands twice)",
    "tensor-twice": "is not JSON ('a' stands twice)",
    "list": "is not a JSON object",
    "null": "is not a JSON object",
    # its fields
    "no-metadata": "has no metadata, without which stock loaders fail",
    "no-weight-map": "has no weight_map",
    "weight-map-is-a-list": "has no weight_map",
    "weight-map-is-empty": "has no weight_map",
    "weight-map-is-null": "has no weight_map",
    # the names of shards
    "shard-is-null": "'a' is mapped to None, which is not a plain file name",
    "shard-is-a-number": "'a' is mapped to 1, which is not a plain file name",
    "shard-is-a-list": "'a' is mapped to ['model-00001-of-00002.safetensors'], which is not",
    "shard-is-empty": "'a' is mapped to '', which is not a plain file name",
    "shard-in-the-parent": "'a' is mapped to '../model-00001-of-00002.safetensors', which is not",
    "shard-behind-dots": "'a' is mapped to 'x/../model-00001-of-00002.safetensors', which is not",
    "shard-in-a-subdirectory": "'a' is mapped to 'x/model-00001-of-00002.safetensors', which is not",
    "shard-in-dot": "'a' is mapped to './model-00001-of-00002.safetensors', which is not",
    "shard-at-an-absolute-path": "'a' is mapped to '/etc/passwd', which is not a plain file name",
    "shard-is-dot": "'a' is mapped to '.', which is not a plain file name",
    "shard-is-two-dots": "'a' is mapped to '..', which is not a plain file name",
    "shard-with-NUL": r"'a' is mapped to 'model-00001-of-00002.safetensors\x00', which is not",
    "shard-with-a-backslash": r"'a' is mapped to '..\\model-00001-of-00002.safetensors', which is not",
    "shard-of-256-letters": "which is not a plain file name",
    # what the shards hold
    "shard-with-a-lone-surrogate": "which is missing; download it again",
    "shard-is-missing": "names model-00003-of-00002.safetensors, which is missing; download it again",
    "shard-is-the-index": "this is not a safetensors file",
    "tensor-of-another-shard": "a stands in model-00001-of-00002.safetensors, but the index has it in model-00002-of",
    "tensor-more": "'d' is not in model-00001-of-00002.safetensors; download that shard again",
    "tensor-less": "b stands in model-00001-of-00002.safetensors, but the index has it in no file; rebuild the index",
}
# What stock code accepts, and is refused all the same.
STRICTER = {
    *("NaN", "number-too-large", "minus-zero", "weight-map-twice", "tensor-twice"),
    *("shard-in-dot", "tensor-of-another-shard", "tensor-more", "tensor-less", "weight-map-is-empty"),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_shards(tmp_path)
    return tmp_path


@pytest.mark.parametrize("rule", REFUSED)
def test_is_refused_by_its_own_rule(directory: Path, rule: str) -> None:
    content = (INDEXES / "refused" / f"{rule}.json").read_bytes()
    (directory / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(REFUSED[rule])) as caught:
        open_shards(directory, {INDEX, *SHARDS})
    assert str(caught.value).startswith(f"{directory}/")
    assert len(str(caught.value).splitlines()) == 1
    assert compare_index(content, directory) == (ACCEPTED if rule in STRICTER else REJECTED, "refused")


def test_every_file_of_the_corpus_has_its_rule() -> None:
    assert {path.stem for path in (INDEXES / "refused").iterdir()} == REFUSED.keys()


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
