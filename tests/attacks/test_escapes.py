"""Names and texts that hold escape sequences: none of them reaches the terminal, and none makes a line of its own."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

import s4convert
from s4convert.errors import printable, text_of
from tests.support.command_line import Outcome, run, run_here
from tests.support.environments import in_llavas_environment
from tests.support.synthetic import Spec, read_safetensors, write_checkpoint, write_safetensors

pytestmark = in_llavas_environment

# A title and a colour (ESC), the same by C1, a bell, an overwritten line, a turned text, a line of its own, a delete.
HOSTILE = "x\x1b]0;owned\x07\x1b[31m\x9b31m\rverdict: OK\u202eKO\nverdict: OK\x7f\u2028"
SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    return path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assert_harmless(outcome: Outcome, *, exit_code: int, told: str = "\\u001b]0;owned") -> None:
    """Nothing that a terminal obeys is printed, no line begins as HOSTILE's second does, and *told* is there."""
    assert outcome.exit_code == exit_code, outcome.stderr
    for text in (outcome.stdout, outcome.stderr):
        assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []
        assert not any(line.startswith(("verdict: OK\\u007f", "verdict: OK\x7f")) for line in text.splitlines())
    assert told in outcome.stdout + outcome.stderr


def test_what_is_printable_stays_and_the_rest_is_escaped_as_in_json() -> None:
    assert printable('mask.json Größe 模型 🙂 \\ "') == 'mask.json Größe 模型 🙂 \\ "'
    escaped = printable(HOSTILE + "\ud800\U000e0001")
    assert escaped.isprintable()
    assert json.loads(f'"{escaped}"') == HOSTILE + "\ud800\U000e0001"
    assert text_of(["a\nb", "c"]) == "a\\nb\nc"


def test_a_quant_method(source: Path, tmp_path: Path, mask: Path) -> None:
    change(source / "config.json", quantization_config={"quant_method": HOSTILE})
    assert_harmless(run_here(source, tmp_path / "out", "--mask", mask), exit_code=2, told="owned")


@pytest.mark.parametrize("field", ["model_type", "transformers_weights"])
def test_a_text_in_the_config(source: Path, tmp_path: Path, mask: Path, field: str) -> None:
    change(source / "config.json", **{field: HOSTILE})
    assert_harmless(run_here(source, tmp_path / "out", "--mask", mask), exit_code=2, told="owned")


@pytest.mark.parametrize("options", [(), ("--json",), ("--dry-run", "-v"), ("--quiet",), ("--debug",)], ids="".join)
def test_a_file_name_that_is_left_behind_and_a_directory(
    source: Path, tmp_path: Path, mask: Path, options: tuple[str, ...]
) -> None:
    (source / f"{HOSTILE}.gguf").write_text("weights")
    out = tmp_path / HOSTILE.replace("/", "")
    assert_harmless(run_here(source, out, "--mask", mask, "--no-verify", *options), exit_code=0)


def test_the_directory_of_a_checkpoint_and_what_it_holds_are_inspected(source: Path) -> None:
    source = source.rename(source.with_name(HOSTILE))
    (source / f"{HOSTILE}.gguf").write_text("weights")
    assert_harmless(run_here("inspect", source), exit_code=0)
    assert_harmless(run_here("inspect", source, "--json"), exit_code=0)


@pytest.mark.parametrize("is_ours", [True, False], ids=["of the language model", "of no layer"])
def test_a_tensor_name(source: Path, tmp_path: Path, mask: Path, is_ours: bool) -> None:
    shard = source / "model.safetensors"
    tensors, name = read_safetensors(shard), f"model.layers.0.{HOSTILE}"
    write_safetensors(shard, tensors | {f"language_model.{name}" if is_ours else name: ("F16", (1,), b"\0<")})
    outcome = run_here(source, tmp_path / "out", "--mask", mask, "--dry-run", "-v")
    assert_harmless(outcome, exit_code=0, told="")
    write_safetensors(shard, tensors | {name: ("F16", (7,), b"\0<")})  # told: it does not fill its bytes
    assert_harmless(run_here(source, tmp_path / "out", "--mask", mask), exit_code=2, told="owned")


def test_the_provenance_of_a_mask(source: Path, tmp_path: Path) -> None:
    mask = tmp_path / "mask.json"
    said = {HOSTILE: HOSTILE, "source": HOSTILE, "fingerprint": "0" * 32, "nested": {HOSTILE: HOSTILE}}
    s4convert.HeadMask(4, ((), (0, 2), ()), provenance=said).save(mask)
    assert_harmless(run_here("inspect", mask), exit_code=0)
    assert_harmless(run_here(source, tmp_path / "out", "--mask", mask, "--no-verify"), exit_code=0, told="owned")


def test_the_fields_of_a_mask_and_of_scores(source: Path, tmp_path: Path, mask: Path) -> None:
    for content in ({"pruned_heads": {HOSTILE: [0]}}, {HOSTILE: 1}, {"format": HOSTILE}, {"0-0": HOSTILE}):
        mask.write_text(json.dumps(content))
        assert_harmless(run_here(source, tmp_path / "out", "--mask", mask, "--no-verify"), exit_code=2, told="")
        assert_harmless(run_here("inspect", mask), exit_code=2, told="")


@pytest.mark.parametrize("field", ["format", "compensation", "source", "card"])
def test_the_fields_of_a_manifest(source: Path, tmp_path: Path, mask: Path, field: str) -> None:
    out = tmp_path / "out"
    assert run_here(source, out, "--mask", mask, "--no-verify").exit_code == 0
    change(out / "s4convert.json", **{field: HOSTILE})
    exit_code = 0 if field == "source" else 2
    assert_harmless(run_here("push", out, "org/name", "--dry-run"), exit_code=2 if field == "format" else 0, told="")
    if field != "source":
        assert_harmless(run_here("verify", source, out), exit_code=exit_code, told="owned")


def test_the_files_that_a_push_lists(source: Path, tmp_path: Path, mask: Path) -> None:
    out = tmp_path / "out"
    (source / f"{HOSTILE}.txt").write_text("notes")
    assert run_here(source, out, "--mask", mask, "--no-verify").exit_code == 0
    (out / f"{HOSTILE}.stray").write_text("notes")
    assert_harmless(run_here("push", out, "org/name", "--dry-run"), exit_code=0)


@pytest.mark.parametrize("arguments", [("inspect", HOSTILE), ("verify", HOSTILE, HOSTILE), (f"--{HOSTILE}",)], ids=len)
def test_an_argument(arguments: tuple[str, ...]) -> None:
    assert_harmless(run_here(*arguments), exit_code=2, told="owned")


def test_a_library_that_logs_a_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Here the step that looks for the statistics does, as any may."""

    def log(path: Path) -> bool:
        logging.getLogger("some.library").error("%s: %s", path, HOSTILE)
        return False

    monkeypatch.setattr(Path, "is_file", log)
    assert_harmless(run_here("inspect", tmp_path), exit_code=2)


def test_a_name_that_the_terminals_encoding_lacks(source: Path, tmp_path: Path, mask: Path) -> None:
    out, environment = tmp_path / "out-🙂", os.environ | {"PYTHONIOENCODING": "latin-1"}
    outcome = run(source, out, "--mask", mask, "--no-verify", environment=environment)
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.endswith("out-\\U0001f642\n")
    assert out.is_dir()


def test_bytes_that_are_no_text_in_outs_name(source: Path, tmp_path: Path, mask: Path) -> None:
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/out-\xff"))
    outcome = run(source, os.fspath(out), "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout.endswith("out-\\udcff\n")
    assert out.is_dir()
