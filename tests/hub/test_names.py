"""Names on the Hub: which texts are one, and that what exists on the disk comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from s4convert.errors import UsageError
from s4convert.hub.names import HubName, check_branch, check_repo_id, checkpoint_name, file_name


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("org/name@main", HubName("org/name", "main")),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("hf://org/name", HubName("org/name")),
        ("hf://org/name@v1.0", HubName("org/name", "v1.0")),
        ("llava-hf/llava-1.5-7b-hf", HubName("llava-hf/llava-1.5-7b-hf")),
    ],
)
def test_a_checkpoint_has_a_repository_and_perhaps_a_revision(text: str, name: HubName) -> None:
    assert checkpoint_name(text) == name
    assert checkpoint_name(Path(text)) == name


@pytest.mark.parametrize(
    "text",
    [
        *("llava", "./org/name", "../org/name", "/org/name", "org/name/", "a/b/c", "~/name", "org//name", ""),
        *("org/name@", "or g/name", "org/na--me", "org/name.git", "org/.name", "org/name:mask.json"),
    ],
)
def test_other_texts_can_only_be_directories(text: str) -> None:
    assert checkpoint_name(text) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name:mask.json", HubName("org/name", None, "mask.json")),
        ("org/name@v1:masks/30.json", HubName("org/name", "v1", "masks/30.json")),
        ("hf://org/name:mask.json", HubName("org/name", None, "mask.json")),
    ],
)
def test_a_mask_has_a_file_as_well(text: str, name: HubName) -> None:
    assert file_name(text) == name


@pytest.mark.parametrize(
    "text", ["org/name", "mask.json", "org/name:", "org/name:../x", "org/name:/x", "org/name:a//b"]
)
def test_other_texts_can_only_be_files(text: str) -> None:
    assert file_name(text) is None


def test_what_exists_is_meant(tmp_path: Path) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name:mask.json").touch()
    (tmp_path / "org" / "dangling").symlink_to("nowhere")
    assert checkpoint_name("org/name") is None
    assert checkpoint_name("org/dangling") is None
    assert file_name("org/name:mask.json") is None
    assert checkpoint_name("hf://org/name") == HubName("org/name")


@pytest.mark.parametrize("text", ["hf://name", "hf://org/name/more", "hf://org/name:file", "hf://or g/name"])
def test_a_wrong_name_after_the_scheme_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not of the form hf://ORG/NAME\[@REVISION\]$"):
        checkpoint_name(text)


@pytest.mark.parametrize("text", ["hf://org/name", "hf://org/name@main", "hf://org/name:../mask.json"])
def test_a_mask_after_the_scheme_needs_a_file(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not of the form hf://ORG/NAME\[@REVISION\]:FILE$"):
        file_name(text)


@pytest.mark.parametrize("text", ["name", "a/b/c", "org/na--me", "org/name.git", "-org/name", "org/name@main", ""])
def test_a_push_needs_a_repository_and_nothing_else(text: str) -> None:
    with pytest.raises(UsageError, match="is not the name of a repository on the Hub; give it as ORG/NAME"):
        check_repo_id(text)


def test_an_ordinary_repository_and_branch_pass() -> None:
    check_repo_id("llava-hf/llava-1.5-7b-hf")
    for branch in ("main", "pruned-30", "feature/x", "refs/pr/3", "v1.0"):
        check_branch(branch)


@pytest.mark.parametrize("branch", ["", "a b", "a..b", "-a", "a/", "/a", "a~1", "a:b", "a.lock", ".a", "a@{1}", "a\\b"])
def test_what_git_does_not_take_for_a_branch_is_refused(branch: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a branch"):
        check_branch(branch)
