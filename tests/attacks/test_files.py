"""A directory that is not what it seems: links, pipes, devices, what cannot be read, what is private.

Each case may take :data:`SECONDS` and :data:`MEMORY`, of which it needs a fraction.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from s4convert import convert, verify_conversion
from s4convert.calibration.statistics import Statistics, read_description
from s4convert.errors import CalibrationError, CheckpointError, StorageError, VerificationError
from s4convert.sources import open_checkpoint
from tests.support.command_line import Outcome, run_here
from tests.support.disk import digests, hidden_siblings
from tests.support.environments import in_llavas_environment
from tests.support.limits import limited
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = in_llavas_environment

SECONDS, MEMORY = 20.0, 512 << 20
SPEC = Spec(num_layers=2, num_kv_heads=4, hidden_size=16, num_shards=2)
SHARD = "model-00001-of-00002.safetensors"


@pytest.fixture(autouse=True)
def _limits() -> Iterator[None]:
    import torch  # noqa: F401  # what it maps is not the attack's

    with limited(more_bytes=MEMORY, seconds=SECONDS):
        yield


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


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the user's that is none of IN's business."""
    directory = tmp_path / "home" / ".ssh"
    directory.mkdir(parents=True)
    (directory / "id_rsa").write_text("the private key")
    return directory


def converted(source: Path, out: Path, mask: Path, *options: object) -> Outcome:
    return run_here(source, out, "--mask", mask, "--no-verify", *options)


def assert_refused(outcome: Outcome, exit_code: int, message: str, out: Path) -> None:
    assert message in outcome.error
    assert outcome.exit_code == exit_code
    assert not out.exists()
    assert hidden_siblings(out) == []


# --- directories that cannot be read --------------------------------------------------------------------------


class _Failing:
    """A directory that can be opened, and then not be read."""

    def __init__(self, error: OSError) -> None:
        self._error = error

    def __enter__(self) -> _Failing:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> _Failing:
        return self

    def __next__(self) -> os.DirEntry[str]:
        raise self._error


@contextmanager
def unreadable(directory: Path, error: int, *, at: str) -> Iterator[None]:
    """Let *directory* fail with *error* when it is opened (``opendir``) or read (``getdents``)."""
    listing, scanning = os.listdir, os.scandir

    def failure(path: Any) -> OSError | None:
        is_there = not isinstance(path, int) and Path(path) == directory
        return OSError(error, os.strerror(error), str(path)) if is_there else None

    def listdir(path: Any = ".") -> Any:
        if failed := failure(path):
            raise failed
        return listing(path)

    def scandir(path: Any = ".") -> Any:
        failed = failure(path)
        if failed and at == "opendir":
            raise failed
        return _Failing(failed) if failed else scanning(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "listdir", listdir)
        patch.setattr(os, "scandir", scandir)
        yield


@pytest.fixture(params=[(errno.EACCES, "opendir"), (errno.EIO, "opendir"), (errno.EIO, "getdents")])
def failure(request: pytest.FixtureRequest) -> Callable[[Path], Any]:
    error, at = request.param
    return lambda directory: unreadable(directory, error, at=at)


def test_a_subdirectory_that_cannot_be_read_is_not_left_out(
    source: Path, out: Path, mask: Path, failure: Callable[[Path], Any]
) -> None:
    for directory in (source, source / "assets"):
        for arguments in ((source, out, "--mask", mask), ("inspect", source)):
            with failure(directory):
                assert_refused(run_here(*arguments), 3, f"{directory}: cannot be read: ", out)


def test_verify_does_not_pass_over_a_subdirectory_that_cannot_be_read(
    source: Path, out: Path, mask: Path, failure: Callable[[Path], Any]
) -> None:
    assert converted(source, out, mask).exit_code == 0
    (out / "assets" / "notes.txt").write_text("something else")
    for directory in (source / "assets", out / "assets"):
        with failure(directory):
            outcome = run_here("verify", source, out)
        assert (outcome.exit_code, f"{directory}: cannot be read: " in outcome.error) == (3, True)


def test_force_does_not_replace_a_directory_that_cannot_be_read_to_its_end(
    source: Path, out: Path, mask: Path, failure: Callable[[Path], Any]
) -> None:
    assert converted(source, out, mask).exit_code == 0
    (out / "results").mkdir()
    (out / "results" / "thesis.txt").write_text("the only copy")
    for directory in (out, out / "results"):
        for last in ((), ("--dry-run",)):
            with failure(directory):
                outcome = converted(source, out, mask, "--force", *last)
            assert (outcome.exit_code, f"{directory}: cannot be read: " in outcome.error) == (3, True)
    assert (out / "results" / "thesis.txt").read_text() == "the only copy"


def test_push_does_not_pass_over_a_subdirectory_that_cannot_be_read(
    source: Path, out: Path, mask: Path, failure: Callable[[Path], Any]
) -> None:
    assert converted(source, out, mask).exit_code == 0
    with failure(out / "assets"):
        outcome = run_here("push", out, "me/pruned", "--dry-run")
    assert (outcome.exit_code, f"{out / 'assets'}: cannot be read: " in outcome.error) == (3, True)


def test_a_part_of_the_hubs_cache_that_cannot_be_read_is_not_left_out(
    source: Path, failure: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.HfApi.snapshot_download", lambda *_, **__: str(source))
    assert open_checkpoint("lab/llava").repository is not None
    with failure(source / "assets"), pytest.raises(StorageError, match="assets: cannot be read: "):
        open_checkpoint("lab/llava")


def test_statistics_that_cannot_be_listed_are_an_error_of_the_disk(
    tmp_path: Path, failure: Callable[[Path], Any]
) -> None:
    directory = tmp_path / "statistics"
    directory.mkdir()
    sizes = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size")
    description = {"format": "s4convert-statistics/1"} | dict.fromkeys(sizes, 2)
    (directory / "statistics.json").write_text(json.dumps(description))
    with failure(directory), pytest.raises(StorageError, match="statistics: cannot be read: "):
        Statistics(directory).check_new()
    with failure(directory):
        assert run_here("inspect", directory).exit_code == 3


def test_a_part_whose_config_cannot_be_read_is_not_taken_for_an_earlier_state(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "tower").mkdir()
    (source / "tower" / "config.json").write_text('{"model_type": "clip_vision_model"}')
    (source / "tower" / "model.safetensors").write_bytes(b"weights")
    opened = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == source / "tower" / "config.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", failing)
    assert_refused(converted(source, out, mask), 3, "tower/config.json: cannot be read: Input/output error", out)


# --- links ----------------------------------------------------------------------------------------------------


def assets_are_a_link(source: Path, outside: Path) -> Path:
    shutil.rmtree(source / "assets")
    (source / "assets").symlink_to(outside)
    return source / "assets"


def a_file_is_a_link(source: Path, outside: Path) -> Path:
    (source / "assets" / "notes.txt").unlink()
    (source / "assets" / "notes.txt").symlink_to(outside / "id_rsa")
    return source / "assets" / "notes.txt"


def a_file_is_a_link_by_way_of_another(source: Path, outside: Path) -> Path:
    (source / ".git").mkdir()
    (source / ".git" / "link").symlink_to(os.path.relpath(outside / "id_rsa", source / ".git"))
    (source / "notes.txt").symlink_to(".git/link")
    return source / "notes.txt"


def a_file_is_behind_dots(source: Path, outside: Path) -> Path:
    (source / "notes.txt").symlink_to("assets/../../home/.ssh/id_rsa")
    return source / "notes.txt"


def a_shard_is_a_link(source: Path, outside: Path) -> Path:
    (source / SHARD).rename(outside / SHARD)
    (source / SHARD).symlink_to(outside / SHARD)
    return source / SHARD


def the_config_is_a_link(source: Path, outside: Path) -> Path:
    (source / "config.json").rename(outside / "config.json")
    (source / "config.json").symlink_to(outside / "config.json")
    return source / "config.json"


def a_link_only_looks_like_one_to_a_blob(source: Path, outside: Path) -> Path:
    (outside / ("0" * 64)).write_text("not a blob of the Hub's cache")
    (source.parent / "models--lab--llava").mkdir()
    (source.parent / "models--lab--llava" / "blobs").symlink_to(outside)
    (source / "notes.txt").symlink_to(f"../models--lab--llava/blobs/{'0' * 64}")
    return source / "notes.txt"


LINKS = (
    *(assets_are_a_link, a_file_is_a_link, a_file_is_a_link_by_way_of_another, a_file_is_behind_dots),
    *(a_shard_is_a_link, the_config_is_a_link, a_link_only_looks_like_one_to_a_blob),
)


@pytest.mark.parametrize("spoil", LINKS)
def test_a_link_out_of_in_is_refused_by_name(
    source: Path, out: Path, mask: Path, outside: Path, spoil: Callable[[Path, Path], Path]
) -> None:
    link = spoil(source, outside)
    outcome = converted(source, out, mask)
    assert_refused(outcome, 2, f"{link}: is a link to {os.path.realpath(link)}, outside of the checkpoint; put a", out)


def test_links_inside_in_and_to_blobs_of_the_hubs_cache_become_files(
    source: Path, out: Path, mask: Path, tmp_path: Path
) -> None:
    blobs = tmp_path / "cache" / "models--lab--llava" / "blobs"
    blobs.mkdir(parents=True)
    (source / SHARD).rename(blobs / ("a" * 64))
    (source / SHARD).symlink_to(blobs / ("a" * 64))
    (source / "generation_config.json").rename(blobs / ("b" * 40))
    (source / "generation_config.json").symlink_to(blobs / ("b" * 40))
    (source / "LICENSE").symlink_to("assets/notes.txt")
    (tmp_path / "link-to-in").symlink_to("in")
    assert converted(tmp_path / "link-to-in", out, mask).exit_code == 0
    assert digests(out)["LICENSE"] == digests(out)["assets/notes.txt"]
    assert not any(path.is_symlink() for path in out.rglob("*"))
    verify_conversion(source, out, check_behaviour=False)


def test_directories_that_link_to_each_other_are_searched_once_each(source: Path, out: Path, mask: Path) -> None:
    """Followed, the links would lead to each of 2^30 paths."""
    for number in range(30):
        (source / f"d{number}").mkdir()
        (source / f"d{number}" / "a.txt").write_text("x")
        for name in ("left", "right"):
            (source / f"d{number}" / name).symlink_to(f"../d{(number + 1) % 30}")
    outcome = converted(source, out, mask)
    assert outcome.exit_code == 0, outcome.stderr
    assert f"{source / 'd7' / 'left'}: left behind, it is a link to a directory" in outcome.stderr
    assert sum(name.endswith("a.txt") for name in digests(out)) == 30
    verify_conversion(source, out, check_behaviour=False)


# --- hidden and private files ---------------------------------------------------------------------------------


def write_files(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("x")


def test_what_git_and_the_hub_keep_in_in_is_left_behind_and_named(source: Path, out: Path, mask: Path) -> None:
    write_files(source, ".git/config", ".cache/huggingface/download/config.json.metadata", ".gitattributes")
    outcome = converted(source, out, mask)
    assert outcome.exit_code == 0
    for name in (".git", ".cache", ".gitattributes"):
        assert f"{source / name}: left behind, it is git's or the Hub's own" in outcome.stderr
        assert not (out / name).exists()
        assert f"left behind   {name} (it is git's or the Hub's own)" in run_here("inspect", source).stdout


def test_hidden_and_private_files_are_copied_and_named(source: Path, out: Path, mask: Path) -> None:
    names = (".env", "deploy.pem", "keys/id_rsa", ".netrc", "assets/.hidden", ".settings/a.json", "token", "api.key")
    write_files(source, *names)
    outcome = converted(source, out, mask)
    assert outcome.exit_code == 0
    (message,) = [line for line in outcome.stderr.splitlines() if "move away what is private" in line]
    assert all(name in message for name in names)
    assert set(names) <= digests(out).keys()
    verify_conversion(source, out, check_behaviour=False)
    pushed = run_here("push", out, "me/pruned", "--dry-run", "--json")
    assert set(names) <= json.loads(pushed.stdout)["files"].keys()
    (message,) = [line for line in pushed.stderr.splitlines() if "will be on the Hub" in line]
    assert all(name in message for name in names)


def test_where_nothing_is_private_nothing_is_named(source: Path, out: Path, mask: Path) -> None:
    write_files(source, "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    assert "move away what is private" not in converted(source, out, mask).stderr
    assert "will be on the Hub" not in run_here("push", out, "me/pruned", "--dry-run").stderr


def test_a_conversion_under_git_is_verified_and_pushed_without_what_is_gits(
    source: Path, out: Path, mask: Path
) -> None:
    assert converted(source, out, mask).exit_code == 0
    write_files(out, ".git/config", ".cache/huggingface/a.lock", ".gitattributes")
    assert run_here("verify", source, out).exit_code == 0
    pushed = json.loads(run_here("push", out, "me/pruned", "--dry-run", "--json").stdout)
    assert not any(name.startswith(".") for name in pushed["files"])
    assert pushed["stays_behind"] == [".gitattributes"]


def test_the_permissions_of_files_are_kept(source: Path, out: Path, mask: Path) -> None:
    modes = {".env": 0o600, "run.sh": 0o755, "read-only.txt": 0o444, SHARD: 0o640}
    for name, mode in modes.items():
        (source / name).touch()
        (source / name).chmod(mode)
    assert converted(source, out, mask).exit_code == 0
    found = {name: stat.S_IMODE((out / name).stat().st_mode) for name in modes}
    assert found == modes | {"read-only.txt": 0o644}  # whoever made OUT may write it


# --- pipes, devices, and what is too large --------------------------------------------------------------------


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_directory(path: Path) -> None:
    path.mkdir()


def too_large(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)  # it takes no room on the disk


IRREGULAR: dict[Callable[[Path], None], str] = {
    a_pipe: "is not a regular file",
    a_link_to_a_device: "is a link to /dev/zero, outside of the checkpoint",
    too_large: "has 1,099,511,627,776 bytes, and ",
}


@pytest.mark.parametrize("spoil", IRREGULAR)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "README.md", "tokenizer_config.json", "s4convert.json"]
)
def test_a_file_of_in_that_never_ends_is_refused_unread(
    source: Path, out: Path, mask: Path, name: str, spoil: Callable[[Path], None]
) -> None:
    (source / name).unlink(missing_ok=True)
    spoil(source / name)
    outcome = converted(source, out, mask)
    assert_refused(outcome, 2, f"{source / name}: {IRREGULAR[spoil]}", out)


@pytest.mark.parametrize("spoil", IRREGULAR)
def test_a_file_of_a_conversion_that_never_ends_fails_verification(
    source: Path, out: Path, mask: Path, spoil: Callable[[Path], None]
) -> None:
    convert(source, out, mask, check_behaviour=False)
    (out / "config.json").unlink()
    spoil(out / "config.json")
    with pytest.raises(VerificationError, match=f"config.json: {IRREGULAR[spoil]}"):
        verify_conversion(source, out, check_behaviour=False)


@pytest.mark.parametrize("spoil", [a_pipe, a_link_to_a_device, a_directory, too_large])
def test_a_mask_that_never_ends_is_refused_unread(
    source: Path, out: Path, mask: Path, spoil: Callable[[Path], None]
) -> None:
    mask.unlink()
    spoil(mask)
    message = "has 1,099,511,627,776 bytes" if spoil is too_large else "is not a regular file"
    assert_refused(converted(source, out, mask), 2, f"{mask}: {message}", out)


@pytest.mark.parametrize("spoil", [a_pipe, a_link_to_a_device, a_directory, too_large])
def test_a_description_of_statistics_that_never_ends_is_refused_unread(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "statistics.json")
    with pytest.raises(CalibrationError, match=r"statistics\.json"):
        read_description(tmp_path)


@pytest.mark.parametrize("spoil", [a_pipe, a_link_to_a_device, a_directory])
def test_a_question_file_that_never_ends_is_refused_unread(
    source: Path, out: Path, mask: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    questions = tmp_path / "questions.json"
    spoil(questions)
    options = ("--compensate", "least-squares", "--calibration", questions)
    assert_refused(converted(source, out, mask, *options), 2, f"{questions}: is not a regular file", out)


def test_a_socket_among_the_files_is_refused(source: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(source / "s"))
        with pytest.raises(CheckpointError, match="s: is not a regular file; move it elsewhere"):
            open_checkpoint(source)
