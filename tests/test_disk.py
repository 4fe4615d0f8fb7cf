"""A file is written whole or not at all, and never over another by accident."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from s4convert.disk import write_output
from s4convert.errors import StorageError, UsageError


def test_the_text_is_written_as_it_is_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_output(tmp_path / "file", "one\ntwo\n", force=False)
    assert (tmp_path / "file").read_bytes() == b"one\ntwo\n"
    assert os.listdir(tmp_path) == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("old")
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(StorageError, match="file: cannot be written: No space left on device"):
        write_output(tmp_path / "file", "new", force=True)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_output(tmp_path / "file", "new", force=False)
    assert os.listdir(tmp_path) == []


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: (tmp_path / "file").write_text("another's"))
    with pytest.raises(UsageError, match="exists"):
        write_output(tmp_path / "file", "new", force=False)
    assert (tmp_path / "file").read_text() == "another's"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name, message in (("directory", "is not a file"), ("link", "is a symbolic link")):
        with pytest.raises(UsageError, match=message):
            write_output(tmp_path / name, "new", force=True)
    with pytest.raises(StorageError, match="no such directory; create it first"):
        write_output(tmp_path / "missing" / "file", "new", force=True)
