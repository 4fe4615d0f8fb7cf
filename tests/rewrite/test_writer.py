"""The writer's ways to the same bytes, and what strikes between a copy and its check."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from s4convert import convert
from s4convert.disk import kept_sha256
from s4convert.errors import CheckpointError, StorageError, VerificationError
from tests.support import seams
from tests.support.disk import digests, hidden_siblings
from tests.support.synthetic import Spec, write_checkpoint

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    return path


def convert_bytes(source: Path, out: Path, mask: Path, **options: Any) -> None:
    convert(source, out, mask, check_behaviour=False, **options)


# --- clones ---------------------------------------------------------------------------------------------------


def clone(target: int, request: int, source: int) -> int:
    """What FICLONE does, on any file system."""
    assert request == 0x40049409
    os.pwrite(target, os.pread(source, os.fstat(source).st_size, 0), 0)
    return 0


def test_where_files_can_be_cloned_only_edits_are_written(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_bytes(source, tmp_path / "copied", mask)
    monkeypatch.setattr(fcntl, "ioctl", clone)
    monkeypatch.delattr(os, "copy_file_range")
    seams.pass_in_blocks_of(monkeypatch, 100)
    convert_bytes(source, tmp_path / "cloned", mask)
    assert digests(tmp_path / "cloned") == digests(tmp_path / "copied")


def test_a_clone_that_fails_on_the_disk_is_an_error(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(StorageError, match="No space left on device"):
        convert_bytes(source, tmp_path / "out", mask)
    assert hidden_siblings(tmp_path / "out") == []


# --- what strikes between a copy, its check and the commit ------------------------------------------------------


def test_a_byte_that_changes_between_the_copy_and_its_check_is_noticed(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = os.copy_file_range

    def copy_and_strike(source: int, target: int, size: int, begin: int, at: int) -> int:
        copied = copy(source, target, size, begin, at)
        if begin == 0:  # the header, or a sidecar: without them it could not even be opened
            return copied
        os.pwrite(target, bytes([os.pread(target, 1, at + copied - 1)[0] ^ 1]), at + copied - 1)
        return copied

    monkeypatch.setattr(os, "copy_file_range", copy_and_strike)
    with pytest.raises(VerificationError, match=r"is not the original's|is not what the mask asks for"):
        convert_bytes(source, tmp_path / "out", mask)
    assert not (tmp_path / "out").exists()


def strikes_at_once(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def puts_another_in_place(shard: Path) -> None:
    other = shard.with_name("other")
    other.write_bytes(shard.read_bytes()[:-1] + b"?")
    os.utime(other, ns=(shard.stat().st_atime_ns, shard.stat().st_mtime_ns))
    other.rename(shard)


@pytest.mark.parametrize("change", [strikes_at_once, puts_another_in_place])
def test_a_file_that_changes_right_after_its_check_is_checked_again(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    seams.after_staging(monkeypatch, lambda staged: change(staged / "model-00002-of-00002.safetensors"))
    with pytest.raises(VerificationError, match=r"model-00002-of-00002.safetensors: .* is not the original's"):
        convert_bytes(source, tmp_path / "out", mask)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_touched_after_its_check_passes_when_it_is_checked_again(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_bytes(source, tmp_path / "undisturbed", mask)
    seams.after_staging(monkeypatch, lambda staged: os.utime(staged / "config.json"))
    convert_bytes(source, tmp_path / "out", mask)
    assert digests(tmp_path / "out") == digests(tmp_path / "undisturbed")


# --- hashes -----------------------------------------------------------------------------------------------------


def test_the_hash_that_is_kept_beside_a_file_is_of_that_file_alone(source: Path, mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_bytes(source, out, mask)
    shard = out / "model-00001-of-00002.safetensors"
    if kept_sha256(shard) is None:
        pytest.skip("this file system keeps no extended attributes")
    assert kept_sha256(shard) == digests(out)[shard.name]
    copy = tmp_path / "copy"
    copy.write_bytes(shard.read_bytes())
    for name in os.listxattr(shard):
        os.setxattr(copy, name, os.getxattr(shard, name))
    os.utime(copy, ns=(shard.stat().st_atime_ns, shard.stat().st_mtime_ns))
    assert kept_sha256(copy) is None
    strikes_at_once(shard)
    assert kept_sha256(shard) is None


def test_a_shard_that_is_not_what_the_hubs_cache_names_is_told(tmp_path: Path) -> None:
    cache, plain = tmp_path / "models--org--name", tmp_path / "plain"
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "main"
    spec = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=40)  # so that some hold no projection
    write_checkpoint(snapshot, spec)
    blobs.mkdir()
    hashes = digests(snapshot)
    for name in [name for name in hashes if name.endswith(".safetensors")]:
        (snapshot / name).rename(blobs / hashes[name])
        (snapshot / name).symlink_to(blobs / hashes[name])
    mask = tmp_path / "mask.json"
    mask.write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    convert_bytes(snapshot, plain, mask)
    unedited = next(name for name, sha256 in digests(plain).items() if (blobs / sha256).exists())
    strikes_at_once(blobs / hashes[unedited])
    with pytest.raises(CheckpointError, match=f"{unedited}: is not what its sha256 {hashes[unedited]} names"):
        convert_bytes(snapshot, tmp_path / "out", mask)
