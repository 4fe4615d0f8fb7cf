"""What changes while a conversion runs, even after its check, is not committed, and nothing is destroyed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from s4convert import convert, verify_conversion, verify_files
from s4convert.errors import StorageError, UsageError, VerificationError
from tests.support import seams
from tests.support.command_line import run_here
from tests.support.disk import digests, hidden_siblings, snapshot
from tests.support.synthetic import Spec, write_checkpoint

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def strike(path: Path) -> None:
    """Change the last byte of the file *path*, and leave it with the mtime that it had."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def write_new(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("new")


IN_CHANGES: dict[str, Callable[[Path], None]] = {
    "a shard, with its old mtime": lambda source: strike(source / SHARD),
    "a sidecar, with its old mtime": lambda source: strike(source / "generation_config.json"),
    "a new sidecar": lambda source: write_new(source / "tokenizer.json"),
    "a new sidecar in a hidden directory": lambda source: write_new(source / ".settings" / "a.json"),
}
STAGED_CHANGES: dict[str, Callable[[Path], None]] = {
    "a shard, with its old mtime": lambda staged: strike(staged / SHARD),
    "a sidecar": lambda staged: write_new(staged / "config.json"),
    "the card": lambda staged: strike(staged / "README.md"),
    "the manifest": lambda staged: strike(staged / "s4convert.json"),
    "a new file": lambda staged: write_new(staged / "tokenizer.json"),
}


@pytest.mark.parametrize("when", [seams.after_staging, seams.before_the_last_look])
@pytest.mark.parametrize("change", IN_CHANGES.values(), ids=IN_CHANGES)
def test_a_change_of_in_at_any_time_is_an_error(
    source: Path,
    out: Path,
    mask: Path,
    monkeypatch: pytest.MonkeyPatch,
    when: Callable[..., None],
    change: Callable[[Path], None],
) -> None:
    when(monkeypatch, lambda *staged: change(source))
    with pytest.raises(StorageError, match=r"in/.*: (changed|appeared) during the run; start again"):
        convert(source, out, mask, check_behaviour=False)
    assert not out.exists()
    assert hidden_siblings(out) == []


@pytest.mark.parametrize("change", STAGED_CHANGES.values(), ids=STAGED_CHANGES)
def test_a_change_of_what_is_staged_after_its_check_is_not_committed(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    staged = out.with_name(".out.s4convert-staging") / "checkpoint"
    seams.before_the_last_look(monkeypatch, lambda: change(staged))
    with pytest.raises(StorageError, match=r"checkpoint/.*: (changed|appeared) during the run; start again"):
        convert(source, out, mask, check_behaviour=False)
    assert not out.exists()
    assert hidden_siblings(out) == []


@pytest.mark.parametrize("option", ["report", "save_mask"])
def test_nothing_that_a_conversion_is_told_to_write_may_stand_in_in(
    source: Path, out: Path, mask: Path, option: str
) -> None:
    before = snapshot(source)
    with pytest.raises(UsageError, match="would be in IN, which is never written to"):
        convert(source, out, mask, check_behaviour=False, **{option: source / "assets" / "new.html"})
    assert snapshot(source) == before


# --- what stands at OUT ---------------------------------------------------------------------------------------


@pytest.fixture
def old(source: Path, out: Path, mask: Path) -> Path:
    convert(source, out, mask, check_behaviour=False)
    return out


@pytest.mark.parametrize("name", [SHARD, "README.md", "config.json"])
@pytest.mark.parametrize("changed", [strike, lambda path: path.write_text("notes")], ids=["at its size", "rewritten"])
def test_force_does_not_replace_what_somebody_changed_in_a_conversion(
    source: Path, old: Path, mask: Path, name: str, changed: Callable[[Path], None]
) -> None:
    changed(old / name)
    os.utime(old / name)
    before = digests(old)
    for options in (("--force",), ("--force", "--dry-run")):
        outcome = run_here(source, old, "--mask", mask, "--no-verify", *options)
        assert outcome.exit_code == 2, outcome.stderr
        assert f"{old / name}: was changed after it was converted and would be lost; move {old} " in outcome.error
    assert digests(old) == before


def test_force_replaces_a_conversion_whose_hashes_were_not_kept(source: Path, old: Path, mask: Path) -> None:
    """As after a copy, or on a file system without extended attributes; there the files are read."""
    for path in (path for path in old.rglob("*") if path.is_file()):
        for name in os.listxattr(path):
            os.removexattr(path, name)
    (old / "generation_config.json").unlink()  # what is not there is not lost
    (old / "empty").mkdir()
    convert(source, old, mask, check_behaviour=False, force=True)
    verify_conversion(source, old, check_behaviour=False)


def test_what_changes_at_out_while_its_replacement_is_made_is_kept(
    source: Path, old: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.before_the_last_look(monkeypatch, lambda: strike(old / SHARD))
    with pytest.raises(UsageError, match="changed during the run, so `force=True` will not replace it"):
        convert(source, old, mask, check_behaviour=False, force=True)
    assert hidden_siblings(old) == []
    with pytest.raises(VerificationError):
        verify_files(old)  # what was written into it stands


# --- what verification passes by ------------------------------------------------------------------------------


def test_verification_says_what_it_does_not_look_into(source: Path, old: Path) -> None:
    (old / ".cache" / "unpruned").mkdir(parents=True)
    (old / "empty").mkdir()
    (old / "link").symlink_to("assets")
    (old / ".gitattributes").touch()
    said = "3 entries beside the checkpoint were not looked into: .cache, empty, link"
    assert verify_conversion(source, old, check_behaviour=False).notes == (said,)
    assert f"note: {said}" in run_here("verify", old).stdout


def test_an_empty_directory_of_in_is_left_behind_and_named(source: Path, out: Path, mask: Path) -> None:
    (source / "checkpoints" / "old").mkdir(parents=True)
    outcome = run_here(source, out, "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{source / 'checkpoints/old'}: left behind, it is an empty directory" in outcome.stderr


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_change_during_a_verification_is_an_error(
    source: Path, old: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    from s4convert.jobs import verify

    check = verify.check_digests

    def checked(*arguments: object) -> None:
        check(*arguments)
        strike(old.with_name(side) / SHARD)

    monkeypatch.setattr(verify, "check_digests", checked)
    with pytest.raises(StorageError, match=f"{side}/{SHARD}: changed during the run"):
        verify_conversion(source, old, check_behaviour=False)


# --- after the commit -----------------------------------------------------------------------------------------


def test_a_disk_that_fails_after_the_renaming_is_a_warning(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What stood at OUT, the staging directory and the lock cannot be looked at any more: OUT stands all the same."""
    convert(source, out, mask, check_behaviour=False)
    rename = os.rename

    def fail(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(5, os.strerror(5), str(path))

    def renamed(old: Path, new: Path) -> None:
        rename(old, new)
        if new == out:
            for name in ("stat", "lstat", "unlink", "rename"):
                monkeypatch.setattr(os, name, fail)

    new_mask = out.with_name("new-mask.json")
    new_mask.write_text(json.dumps({"pruned_heads": {"0": [3]}}))
    with monkeypatch.context():
        monkeypatch.setattr(os, "rename", renamed)
        report = convert(source, out, new_mask, check_behaviour=False, force=True)
        monkeypatch.undo()
    assert report.mask.pruned == ((3,), (), ())
    assert verify_conversion(source, out, check_behaviour=False).mask == report.mask
    assert "cannot be removed: Input/output error; remove it yourself" in caplog.text
