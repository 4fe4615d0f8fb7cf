"""The loopback Hub's hashes are the ones that git gives."""

from __future__ import annotations

import subprocess
from datetime import datetime, timezone
from pathlib import Path

from tests.hub.git_objects import commit_id, lfs_pointer, object_id, tree_ids

DATE = datetime(2024, 5, 6, 7, 8, 9, tzinfo=timezone.utc)
FILES = {
    "a-file": b"1",
    "a/file": b"2",
    "a.file": b"3",
    "a/deep/er/file": b"",
    "b/c": lfs_pointer("0" * 64, 12345),
}


def git(repository: Path, *arguments: str) -> str:
    identity = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (
            ("NAME", "alice"),
            ("EMAIL", "alice@users.noreply.invalid"),
            ("DATE", f"{int(DATE.timestamp())} +0000"),
        )
    }
    environment = {"HOME": str(repository), "PATH": "/usr/local/bin:/usr/bin:/bin", **identity}
    return subprocess.run(
        ["git", *arguments], cwd=repository, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_files_folders_and_commits_are_named_as_git_names_them(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    for path, content in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "One")
    first = git(tmp_path, "rev-parse", "HEAD")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--cleanup=verbatim", "--message", "Two\n\nmore")
    listed = git(tmp_path, "ls-tree", "-r", "-t", "HEAD").splitlines()
    expected = {line.split("\t")[1]: line.split()[2] for line in listed}

    blobs = {path: object_id("blob", content) for path, content in FILES.items()}
    trees = tree_ids(blobs)
    root = trees.pop("")
    assert blobs | trees == expected
    assert root == git(tmp_path, "rev-parse", "HEAD^{tree}")
    # git ends the message of a command line with a line feed.
    assert commit_id(root, None, "alice", DATE, "One\n") == first
    assert commit_id(root, first, "alice", DATE, "Two\n\nmore\n") == git(tmp_path, "rev-parse", "HEAD")
