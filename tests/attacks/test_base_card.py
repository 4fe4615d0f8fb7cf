"""A README.md or a Pillow that is out of order never loses a conversion: it is refused at once, or it does not matter.

Each case may take :data:`SECONDS` and :data:`MEMORY`, of which it needs a fraction.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from s4convert import verify_conversion
from s4convert.output.card import BEGIN, END
from tests.support import seams
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests, hidden_siblings
from tests.support.environments import in_llavas_environment
from tests.support.limits import limited
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = in_llavas_environment

SECONDS, MEMORY = 20.0, 512 << 20


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    import torch  # noqa: F401  # what it maps is not the attack's

    with limited(more_bytes=MEMORY, seconds=SECONDS):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", Spec(num_layers=2, num_kv_heads=4, hidden_size=16))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def convert(source: Path, out: Path, *options: object, heads: tuple[int, ...] = (0, 2)) -> Outcome:
    mask = out.with_name("mask.json")
    mask.write_text(json.dumps({"pruned_heads": {"1": heads}}))
    return run_here(source, out, "--mask", mask, "--no-verify", *options)


def metadata_and_text(card: Path) -> tuple[dict[str, Any], str]:
    _, block, text = card.read_text().split("---\n", 2)
    return yaml.safe_load(block), text


@pytest.mark.parametrize(
    ("metadata", "field", "expected"),
    [
        ("self: x", "self", "x"),
        ("tags: 5", "tags", [5, "s4convert", "pruned", "attention-head-pruning"]),
        ("tags: s4convert", "tags", ["s4convert", "pruned", "attention-head-pruning"]),
        ("tags: {a: 1}", "tags", [{"a": 1}, "s4convert", "pruned", "attention-head-pruning"]),
        ("tags: [pruned, [a]]", "tags", ["pruned", ["a"], "s4convert", "attention-head-pruning"]),
        ("ignore_metadata_errors: 7", "ignore_metadata_errors", 7),
        ("eval_results: 1\nmodel_name: 2", "library_name", "transformers"),
        ("language: {a: {b: c}}", "language", {"a": {"b": "c"}}),
        ("1: 2", "1", 2),
        ("library_name: [x]", "library_name", ["x"]),
        ("date: 2024-01-01", "license", None),
        ("text: '---'", "text", "---"),
    ],
)
def test_odd_metadata_is_taken_over(source: Path, out: Path, metadata: str, field: str, expected: Any) -> None:
    (source / "README.md").write_text(f"---\n{metadata}\n---\n# The base\n")
    outcome = convert(source, out)
    assert outcome.exit_code == 0, outcome.stderr
    found, text = metadata_and_text(out / "README.md")
    assert found.get(field) == expected
    assert text.rstrip().endswith("# The base")


@pytest.mark.parametrize(
    "metadata",
    [
        "a: !!python/object/apply:os.system [ls]",
        "a: !!pairs [b: 1]",
        "[a]: b",
        "a: " + "[" * 3000,
        "a: " + "[" * 150 + "]" * 150,
        "x: " + "y" * (1 << 20),
        "a: \x07",
        "3",
    ],
    ids=["object", "pairs", "list as a name", "open brackets", "brackets", "long", "control", "number"],
)
def test_metadata_that_cannot_be_taken_over_is_refused_or_taken_over_before_the_first_byte(
    source: Path, out: Path, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "README.md").write_text(f"---\n{metadata}\n---\n# The base\n")
    is_staged: list[bool] = []
    seams.before_staging(monkeypatch, lambda: is_staged.append(True))
    outcome = convert(source, out)
    if is_staged:
        assert outcome.exit_code == 0, outcome.stderr
        return
    assert outcome.exit_code == 2
    assert "README.md: its metadata is" in outcome.error
    assert "--no-card" in outcome.error
    assert hidden_siblings(out) == []


def test_aliases_within_aliases_stay_small(source: Path, out: Path) -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 20))
    (source / "README.md").write_text(f"---\nl0: &l0 [x]\n{levels}\n---\n")
    assert convert(source, out).exit_code == 0
    assert (out / "README.md").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (BEGIN * 100_000, BEGIN),
        (END * 100_000, END),
        (f"{BEGIN}x{END}y" * 100_000, "y"),
        ("\n" * 1_000_000 + "x", "x"),
        ("---\n" + "\n" * 1_000_000 + "x", "x"),
        ("---" + "\r\n" * 500_000 + "x", "x"),
        (" " * 1_000_000 + "x", "x"),
    ],
    ids=["begins", "ends", "pairs", "blank lines", "an open block", "an open block of CRLF", "spaces"],
)
def test_a_long_readme_takes_no_time(source: Path, out: Path, text: str, kept: str) -> None:
    (source / "README.md").write_bytes(text.encode())
    outcome = convert(source, out)
    assert outcome.exit_code == 0, outcome.stderr
    card = (out / "README.md").read_text()
    assert kept in card.partition("# The card of the original")[2]
    assert card.startswith("---\n")


@pytest.mark.parametrize("broken", ["missing", "failing"])
def test_a_broken_pillow_costs_the_picture_and_not_the_conversion(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "missing":
        monkeypatch.setitem(sys.modules, "PIL", None)
    else:
        monkeypatch.setattr("PIL.ImageDraw.Draw", lambda *_: 1 / 0)
    outcome = convert(source, out)
    monkeypatch.undo()
    assert outcome.exit_code == 0, outcome.stderr
    assert "the model card has no picture, because Pillow cannot draw it" in outcome.stderr
    assert "s4convert-heads.png" not in (out / "README.md").read_text()
    assert "s4convert-heads.png" not in digests(out)
    assert run_here("verify", source, out).exit_code == 0


def test_a_broken_pillow_does_not_leave_the_picture_of_an_earlier_conversion(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convert(source, out).exit_code == 0
    again = out.with_name("again")
    with monkeypatch.context() as patch:
        patch.setattr("PIL.ImageDraw.Draw", lambda *_: 1 / 0)
        assert convert(out, again, "--allow-converted", heads=(1,)).exit_code == 0
    assert "s4convert-heads.png" in digests(out)
    assert "s4convert-heads.png" not in digests(again)
    verify_conversion(out, again, check_behaviour=False)
