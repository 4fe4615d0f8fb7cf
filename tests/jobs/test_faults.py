"""Whatever happens during a conversion, OUT is absent or whole, IN is untouched, and a rerun puts things right."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from s4convert import convert, verify_conversion
from s4convert.errors import CheckpointError, StorageError, UsageError, VerificationError
from s4convert.output.card import CARD_FILES
from s4convert.rewrite.staging import open_staging
from tests.support import seams
from tests.support.command_line import COMMAND, ERROR, ROOT, outcome_of, run, run_here, start
from tests.support.disk import digests, hidden_siblings, snapshot
from tests.support.environments import in_llavas_environment
from tests.support.forks import DONE, in_forked_children
from tests.support.synthetic import Spec, write_checkpoint
from tests.support.system_calls import SUPPORTED

pytestmark = in_llavas_environment

SMALL = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
LARGE = Spec(
    num_layers=3,
    num_kv_heads=16,
    head_dim=64,
    hidden_size=1024,
    intermediate_size=2816,
    vocab_size=2000,
    num_shards=3,
)


def make_mask(path: Path, heads: list[int]) -> Path:
    path.write_text(json.dumps({"pruned_heads": {"1": heads}}))
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SMALL)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    return make_mask(tmp_path / "mask.json", [0, 2])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a checkpoint, large enough that its conversion can be interrupted, and a mask."""
    directory = tmp_path_factory.mktemp("large")
    write_checkpoint(directory / "in", LARGE)
    make_mask(directory / "mask.json", [0, 5, 6])
    yield directory
    shutil.rmtree(directory)


def convert_bytes(source: Path, out: Path, mask: Path, **options: Any) -> None:
    """A conversion without the hidden states, which have no part in what is tested here."""
    convert(source, out, mask, check_behaviour=False, **options)


def start_large(large: Path, out: Path) -> subprocess.Popen[str]:
    return start(large / "in", out, "--mask", large / "mask.json", "--no-verify", "-q")


def wait_for_staging(process: subprocess.Popen[str], out: Path) -> None:
    """Return when *process* has begun to write, and not ended yet."""
    while not out.with_name(f".{out.name}.s4convert-staging").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


# --- killed ---------------------------------------------------------------------------------------------------


def in_a_process_of_its_own(module: str) -> Any:
    """What ``python -m module`` prints, read as JSON."""
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    finished = subprocess.run(
        [sys.executable, "-m", module], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(finished.stdout)


@pytest.mark.skipif(not SUPPORTED, reason="system calls are held on Linux and x86-64 only")
def test_faults_of_system_calls_and_power_loss_leave_nothing_or_a_whole_checkpoint() -> None:
    """A sample: ``make battery`` has them all."""
    found = in_a_process_of_its_own("tests.battery.sample")
    assert found["broken"] == []
    assert found["faults"] == 40
    assert found["losses of power"] > 500
    assert found["states"] == ["absent", "old", "whole"]


def test_what_a_kill_leaves_of_a_replaced_conversion_is_never_put_back_in_part(
    source: Path, out: Path, mask: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    convert_bytes(source, old, make_mask(tmp_path / "old-mask.json", [1]), card=False)
    convert_bytes(source, out, mask, card=False)
    old_files, new_files = digests(old), digests(out)
    shutil.rmtree(out)
    what = {"killed_behind_the_commit": {"old": str(old)}}
    (entries,) = in_forked_children(source, out, mask, what, card=False)
    assert len(entries) > 10  # each file of the old one is removed in a step of its own
    for entry in entries:
        assert entry["left"]["out"] == new_files
        # Then OUT was removed by hand, and the next run, without force, puts back the old one whole, or converts anew.
        assert entry["again"] == DONE or "is not empty; choose another OUT" in entry["again"]["error"]
        assert entry["left_again"] == {"out": new_files if entry["again"] == DONE else old_files, "siblings": {}}
    assert entries[0]["again"] != DONE
    assert entries[-1]["again"] == DONE


@pytest.fixture
def killed_between_renames(source: Path, out: Path, tmp_path: Path) -> Path:
    """The state that a kill between the two renames of a replacement leaves; the old checkpoint is returned."""
    replaced = out.with_name(".out.s4convert-replaced")
    convert_bytes(source, replaced, make_mask(tmp_path / "old-mask.json", [1]))
    out.with_name(".out.s4convert-lock").touch()
    out.with_name(".out.s4convert-staging").mkdir()
    (out.with_name(".out.s4convert-staging") / "config.json").write_text("half")
    return replaced


def test_a_replacement_that_was_killed_between_its_renames_is_done_by_the_next_run(
    source: Path, out: Path, mask: Path, tmp_path: Path, killed_between_renames: Path
) -> None:
    convert_bytes(source, tmp_path / "expected", mask)
    convert_bytes(source, out, mask, force=True)
    assert digests(out) == digests(tmp_path / "expected")
    assert hidden_siblings(out) == []


def test_a_replacement_that_was_killed_between_its_renames_is_undone_where_the_next_run_fails(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, killed_between_renames: Path
) -> None:
    old_files = digests(killed_between_renames)
    with failing("pwrite", 0, errno.EIO), pytest.raises(StorageError):
        convert_bytes(source, out, mask, force=True)
    assert digests(out) == old_files
    assert hidden_siblings(out) == []


def test_a_checkpoint_that_is_put_back_is_not_replaced_without_force(
    source: Path, out: Path, mask: Path, killed_between_renames: Path
) -> None:
    old_files = digests(killed_between_renames)
    with pytest.raises(UsageError, match="replace it with `force=True`"):
        convert_bytes(source, out, mask)
    assert digests(out) == old_files
    assert hidden_siblings(out) == []


def test_a_checkpoint_is_put_back_into_an_empty_directory_at_out(
    source: Path, out: Path, mask: Path, killed_between_renames: Path
) -> None:
    old_files = digests(killed_between_renames)
    out.mkdir()
    with failing("pwrite", 0, errno.EIO), pytest.raises(StorageError):
        convert_bytes(source, out, mask, force=True)
    assert digests(out) == old_files


def test_a_checkpoint_that_was_moved_away_is_kept_where_something_else_stands_at_out(
    source: Path, out: Path, mask: Path, killed_between_renames: Path
) -> None:
    old_files = digests(killed_between_renames)
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    with pytest.raises(StorageError, match="is what stood at OUT before a conversion was killed; move it"):
        convert_bytes(source, out, mask, force=True)
    assert digests(killed_between_renames) == old_files
    assert (out / "thesis.txt").read_text() == "the only copy"


# --- interrupted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_leaves_nothing_and_says_so(large: Path, tmp_path: Path, number: signal.Signals) -> None:
    process = start_large(large, tmp_path / "out")
    wait_for_staging(process, tmp_path / "out")
    process.send_signal(number)
    outcome = outcome_of(process)
    assert outcome.exit_code == 130
    assert outcome.stderr.strip().startswith(f"{ERROR}interrupted")
    assert outcome.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_the_lock_is_taken_leaves_no_lock(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def interrupted(descriptor: int, operation: int) -> None:
        signal.raise_signal(signal.SIGINT)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_bytes(source, out, mask)
    assert hidden_siblings(out) == []
    assert not out.exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_during_the_commit_comes_too_late(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    convert_bytes(source, out, make_mask(tmp_path / "old-mask.json", [1]))
    remove = shutil.rmtree

    removed = []

    def interrupted(directory: Path, **kwargs: Any) -> None:
        removed.append(directory.name)
        if directory == out.with_name(".out.s4convert-staging") / "discarded":
            signal.raise_signal(signal.SIGINT)
        remove(directory, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    convert_bytes(source, out, mask, force=True)
    assert "discarded" in removed
    assert hidden_siblings(out) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_told_in_one_line(source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.before_staging(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
    outcome = run_here(source, out, "--mask", mask, "--no-verify", "-q")
    assert outcome.exit_code == 130
    assert len(outcome.stderr.splitlines()) == 1


# --- the disk says no -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing(call: str, index: int, error: int | type[BaseException]) -> Iterator[itertools.count[int]]:
    """Let the *index*-th ``os.<call>`` fail with *error*; what is yielded counts the calls."""
    function, calls = getattr(os, call), itertools.count()

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        makes_nothing = call == "mkdir" and Path(args[0]).exists()
        if not makes_nothing and next(calls) == index:
            if isinstance(error, int):
                raise OSError(error, os.strerror(error))
            raise error
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, call, wrapper)
        yield calls


def number_of_calls(call: str, source: Path, out: Path, mask: Path) -> int:
    """How often a conversion calls ``os.<call>``."""
    with failing(call, -1, 0) as calls:
        convert_bytes(source, out, mask)
    shutil.rmtree(out)
    return next(calls)


def test_an_error_of_the_disk_after_the_rename_does_not_deny_that_out_stands(
    source: Path, out: Path, mask: Path
) -> None:
    last = number_of_calls("fsync", source, out, mask) - 1
    with failing("fsync", last, errno.EIO), pytest.raises(StorageError) as caught:
        convert_bytes(source, out, mask)
    assert "OUT is as it was" not in str(caught.value)
    assert out.is_dir()
    assert hidden_siblings(out) == []


@pytest.mark.parametrize("call", ["copy_file_range", "pwrite", "fsync", "truncate", "mkdir", "rename"])
def test_an_interrupt_at_any_call_leaves_nothing_or_a_whole_checkpoint(
    source: Path, out: Path, mask: Path, call: str
) -> None:
    total = number_of_calls(call, source, out, mask)
    before = snapshot(out.parent)
    for index in range(total):
        with failing(call, index, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
            convert_bytes(source, out, mask)
        if out.exists():
            verify_conversion(source, out, check_behaviour=False)
            shutil.rmtree(out)
        assert snapshot(out.parent) == before, f"{call} number {index}"


@pytest.mark.parametrize("most", [1, 3, 1000])
def test_short_writes_are_completed(
    source: Path, out: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    convert_bytes(source, tmp_path / "expected", mask)
    pwrite, copy = os.pwrite, os.copy_file_range
    monkeypatch.setattr(os, "pwrite", lambda target, data, at: pwrite(target, data[:most], at))
    monkeypatch.setattr(
        os, "copy_file_range", lambda source, target, size, *offsets: copy(source, target, min(size, most), *offsets)
    )
    convert_bytes(source, out, mask)
    assert digests(out) == digests(tmp_path / "expected")


@pytest.mark.parametrize(
    "error", [errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, 0], ids=errno.errorcode.get
)
@pytest.mark.parametrize("works_first", [0, 3])
def test_where_the_kernel_cannot_copy_the_same_bytes_are_written(
    source: Path,
    out: Path,
    mask: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    works_first: int,
) -> None:
    convert_bytes(source, tmp_path / "expected", mask)
    copy, calls = os.copy_file_range, itertools.count()

    def refuse(*args: Any) -> int:
        if next(calls) < works_first:
            return copy(*args)
        if not error:
            return 0  # some file systems say "nothing copied" instead of an error
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    convert_bytes(source, out, mask)
    assert next(calls) > works_first
    assert digests(out) == digests(tmp_path / "expected")


def in_a_namespace(script: str, *arguments: object) -> str:
    """Run a shell *script* where it may mount file systems that nobody else sees; its output, in lines."""
    permitted = subprocess.run(["unshare", "-Urm", "true"], capture_output=True)
    if permitted.returncode:
        pytest.skip(f"unshare -Urm is not permitted here: {permitted.stderr.decode().strip()}")
    finished = subprocess.run(
        ["unshare", "-Urm", "sh", "-euc", script, "sh", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    return finished.stdout


# $1 options of the file system, $2 where it is mounted, the rest a command; prints what is left there.
ON_A_SMALL_DISK = """
mount -t tmpfs -o "$1" tmpfs "$2"
disk=$2
shift 2
exit_code=0
"$@" || exit_code=$?
echo "exit code $exit_code"
ls -A "$disk" | sed 's/^/left: /'
"""

# The space check must not answer in the disk's stead.
BLIND_COMMAND = (
    sys.executable,
    "-c",
    "import pytest, s4convert.cli as cli; from tests.support import seams;"
    "seams.believe_there_is_space(pytest.MonkeyPatch()); cli.main()",
)


def pages(directory: Path) -> int:
    """The 4 KiB pages that the files in *directory* take on a tmpfs."""
    return sum(-(-path.stat().st_size // 4096) for path in directory.rglob("*") if path.is_file())


def convert_on_a_small_disk(options: str, disk: Path, source: Path, mask: Path, command: tuple[str, ...]) -> list[str]:
    disk.mkdir()
    printed = in_a_namespace(
        ON_A_SMALL_DISK, options, disk, *command, source, disk / "out", "--mask", mask, "--no-verify", "-q"
    )
    return printed.splitlines()


@pytest.mark.parametrize("missing_pages", [1, 5, 500])
def test_a_full_disk_leaves_nothing(tmp_path: Path, mask: Path, missing_pages: int) -> None:
    spec = Spec(num_layers=2, num_kv_heads=4, head_dim=64, hidden_size=256, intermediate_size=512, vocab_size=500)
    source = write_checkpoint(tmp_path / "in", spec)
    room = 4096 * (pages(source) + 1 - missing_pages)  # one for the manifest
    *messages, exit_code = convert_on_a_small_disk(f"size={room}", tmp_path / "disk", source, mask, BLIND_COMMAND)
    assert exit_code == "exit code 3"
    (message,) = messages
    assert message.startswith(ERROR)
    assert "No space left on device" in message


def test_a_disk_with_just_enough_room_is_enough(tmp_path: Path, source: Path, mask: Path) -> None:
    convert_bytes(source, tmp_path / "expected", mask)
    room = 4096 * pages(tmp_path / "expected")
    printed = convert_on_a_small_disk(f"size={room}", tmp_path / "disk", source, mask, BLIND_COMMAND)
    assert printed == [str(tmp_path / "disk" / "out"), "exit code 0", "left: out"]


def test_a_disk_without_room_for_another_file_leaves_nothing(tmp_path: Path, source: Path, mask: Path) -> None:
    *messages, exit_code = convert_on_a_small_disk("size=64m,nr_inodes=6", tmp_path / "disk", source, mask, COMMAND)
    assert exit_code == "exit code 3"
    (message,) = messages
    assert message.startswith(ERROR)
    assert "No space left on device" in message


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(tmp_path: Path, source: Path, mask: Path) -> None:
    *messages, exit_code = convert_on_a_small_disk("size=64k", tmp_path / "disk", source, mask, COMMAND)
    assert exit_code == "exit code 3"
    (message,) = messages
    assert "65,536 are free; make room for" in message


# --- IN -------------------------------------------------------------------------------------------------------


def touches_a_shard(source: Path) -> None:
    os.utime(source / "model-00002-of-00002.safetensors")


def touches_a_sidecar(source: Path) -> None:
    os.utime(source / "config.json")


def puts_a_copy_in_place(source: Path) -> None:
    shard = source / "model-00001-of-00002.safetensors"
    shutil.copy2(shard, source / "copy")
    (source / "copy").replace(shard)


def deletes_a_sidecar(source: Path) -> None:
    (source / "generation_config.json").unlink()


def changes_a_weight(source: Path) -> None:
    with (source / "model-00002-of-00002.safetensors").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"\0\0")


def cuts_a_shard_short(source: Path) -> None:
    os.truncate(source / "model-00002-of-00002.safetensors", 3000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (touches_a_shard, "changed during the run"),
        (touches_a_sidecar, "changed during the run"),
        (puts_a_copy_in_place, "changed during the run"),
        (deletes_a_sidecar, "vanished during the run"),
        (changes_a_weight, "changed during the run"),
        (cuts_a_shard_short, "changed during the run"),
    ],
)
def test_a_change_of_in_during_the_run_is_an_error_of_storage(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], message: str
) -> None:
    meanwhile(monkeypatch, lambda: change(source))
    with pytest.raises(StorageError, match=message):
        convert_bytes(source, out, mask)
    assert not out.exists()
    assert hidden_siblings(out) == []


def test_a_shard_that_becomes_shorter_while_it_is_copied_is_an_error_of_storage(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = source / "model-00001-of-00002.safetensors"
    seams.before_staging(monkeypatch, lambda: os.truncate(shard, shard.stat().st_size - 2))
    with pytest.raises(StorageError, match=f"{shard.name}: became shorter while it was copied"):
        convert_bytes(source, out, mask)
    assert not out.exists()
    assert hidden_siblings(out) == []


def test_a_shard_that_becomes_shorter_while_it_is_edited_is_an_error_of_storage(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.before_staging(monkeypatch, lambda: monkeypatch.setattr(os, "preadv", lambda *args: 0))
    with pytest.raises(StorageError, match="became shorter while it was read"):
        convert_bytes(source, out, mask)
    assert not out.exists()
    assert hidden_siblings(out) == []


def hub_snapshot(cache: Path, checkpoint: Path) -> Path:
    """*checkpoint* as the Hub's client keeps it: read-only blobs, and a snapshot of relative links to them."""
    blobs, snapshot_directory = cache / "blobs", cache / "snapshots" / "main"
    blobs.mkdir(parents=True)
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        blob.chmod(0o444)
        link = snapshot_directory / path.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot_directory


def test_a_hub_cache_is_read_through_its_links_and_never_written_to(
    source: Path, out: Path, mask: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--org--name"
    links = hub_snapshot(cache, source)
    before, blobs = snapshot(cache), digests(cache / "blobs")
    convert_bytes(links, out, mask)
    assert snapshot(cache) == before
    assert digests(cache / "blobs") == blobs
    assert all(blob == sha256 for blob, sha256 in blobs.items())
    written = [path for path in out.rglob("*") if not path.is_dir()]
    assert len(written) == len(digests(source)) + len(CARD_FILES) + 1
    assert all(stat.S_ISREG(path.lstat().st_mode) for path in written)
    convert_bytes(source, tmp_path / "expected", mask)
    ours, expected = digests(out), digests(tmp_path / "expected")
    for name in ("s4convert.json", "README.md"):  # in these, the two name different sources
        del ours[name], expected[name]
    assert ours == expected


def test_replacing_a_directory_of_links_leaves_what_they_point_to(source: Path, mask: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--org--name"
    convert_bytes(source, tmp_path / "old", mask)
    out = hub_snapshot(cache, tmp_path / "old")
    blobs = digests(cache / "blobs")
    convert_bytes(source, out, mask, force=True)
    assert digests(cache / "blobs") == blobs
    assert not any(path.is_symlink() for path in out.rglob("*"))


READ_ONLY_SOURCE = """
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
if touch "$1/config.json" 2>/dev/null; then echo "not read-only"; fi
shift
"$@"
"""


def test_a_read_only_in_is_converted(source: Path, out: Path, mask: Path) -> None:
    before = snapshot(source)
    printed = in_a_namespace(READ_ONLY_SOURCE, source, *COMMAND, source, out, "--mask", mask, "--no-verify", "-q")
    assert printed.splitlines() == [str(out)]
    assert snapshot(source) == before
    verify_conversion(source, out, check_behaviour=False)


def test_read_only_files_of_in_do_not_make_read_only_files_in_out(source: Path, out: Path, mask: Path) -> None:
    for path in source.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    convert_bytes(source, out, mask)
    assert all(path.stat().st_mode & 0o200 for path in out.rglob("*"))


# --- OUT ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_the_umask_is_honoured(source: Path, out: Path, mask: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        convert_bytes(source, out, mask)
    finally:
        os.umask(previous)
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (out, *out.rglob("*"))}
    assert found == {path: (0o777 if path.is_dir() else 0o666) & ~umask for path in found}
    assert len(found) == 9 + len(CARD_FILES)


def test_of_many_processes_that_write_the_same_out_one_wins(source: Path, out: Path, mask: Path) -> None:
    convert_bytes(source, out, mask, card=False)
    expected = digests(out)
    shutil.rmtree(out)
    (ended,) = in_forked_children(source, out, mask, {"many_at_once": {"num_children": 8}}, card=False)
    losers = [child for child in ended if child != DONE]
    assert len(losers) == 7
    for child in losers:
        assert child["exit_code"] == 3
        assert "another s4convert is writing it" in child["error"]
    assert digests(out) == expected
    assert hidden_siblings(out) == []


def test_a_second_conversion_to_an_out_that_is_being_written_is_refused(source: Path, out: Path, mask: Path) -> None:
    with open_staging(out) as staging:
        (staging.directory / "precious").write_text("the first conversion's")
        with pytest.raises(StorageError, match="another s4convert is writing it"):
            convert_bytes(source, out, mask)
        assert (staging.directory / "precious").read_text() == "the first conversion's"
        assert staging.lock.exists()
    convert_bytes(source, out, mask)


def test_a_lock_whose_owner_removes_it_just_before_it_is_taken_is_taken_anew(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, itertools.count()

    def late(descriptor: int, operation: int) -> None:
        if next(calls) == 0:
            out.with_name(".out.s4convert-lock").unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with open_staging(out):
        with pytest.raises(StorageError, match="another s4convert is writing it"), open_staging(out):
            pass
        assert next(calls) == 3
    assert list(out.parent.iterdir()) == []


def test_of_many_threads_that_take_the_lock_over_and_over_only_one_holds_it(out: Path) -> None:
    holders, held_at_once, taken = [], [], itertools.count()

    def contend() -> None:
        for _ in range(50):
            try:
                with open_staging(out):
                    holders.append(threading.get_ident())
                    held_at_once.append(len(holders))
                    next(taken)
                    holders.remove(threading.get_ident())
            except StorageError:
                pass

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert next(taken) > 0
    assert set(held_at_once) == {1}
    assert list(out.parent.iterdir()) == []


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen while the next conversion is at work, when OUT has been looked at."""
    seams.after_staging(monkeypatch, lambda staged: happens())


def write_a_thesis(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")


def test_what_appears_at_out_during_the_run_is_kept(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(monkeypatch, lambda: write_a_thesis(out))
    with pytest.raises(StorageError, match="OUT is as it was"):
        convert_bytes(source, out, mask)
    assert (out / "thesis.txt").read_text() == "the only copy"
    assert hidden_siblings(out) == []


def test_what_takes_the_place_of_a_checkpoint_that_is_being_replaced_is_kept(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_bytes(source, out, mask)
    meanwhile(monkeypatch, lambda: write_a_thesis(out))
    with pytest.raises(UsageError, match="changed during the run, so `force=True` will not replace it"):
        convert_bytes(source, out, mask, force=True)
    assert (out / "thesis.txt").read_text() == "the only copy"
    assert hidden_siblings(out) == []


def test_an_empty_directory_at_out_is_filled(source: Path, out: Path, mask: Path) -> None:
    out.mkdir()
    convert_bytes(source, out, mask)
    verify_conversion(source, out, check_behaviour=False)


@pytest.fixture
def old(source: Path, out: Path, tmp_path: Path) -> dict[str, str]:
    """An older conversion stands at OUT; these are its files."""
    convert_bytes(source, out, make_mask(tmp_path / "old-mask.json", [1]))
    return digests(out)


def test_a_checkpoint_at_out_is_replaced_by_force_alone(
    source: Path, out: Path, mask: Path, tmp_path: Path, old: dict[str, str]
) -> None:
    with pytest.raises(UsageError, match="is not empty; choose another OUT, or replace it with `force=True`"):
        convert_bytes(source, out, mask)
    assert digests(out) == old
    convert_bytes(source, out, mask, force=True)
    convert_bytes(source, tmp_path / "expected", mask)
    assert digests(out) == digests(tmp_path / "expected") != old
    assert hidden_siblings(out) == []


@pytest.mark.parametrize("name", ["thesis.tex", "results/runs.csv", "pytorch_model.bin"])
def test_force_does_not_replace_a_conversion_with_somebodys_file_in_it(
    source: Path, out: Path, mask: Path, old: dict[str, str], name: str
) -> None:
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("the only copy")
    before = snapshot(out.parent)
    with pytest.raises(UsageError, match=f"{name}: was not written by a conversion and would be lost"):
        convert_bytes(source, out, mask, force=True)
    assert snapshot(out.parent) == before


def test_force_does_not_replace_the_files_that_in_is_linked_to(
    source: Path, out: Path, mask: Path, tmp_path: Path, old: dict[str, str]
) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in source.iterdir():
        if path.is_file():
            shutil.copyfile(path, linked / path.name)
    shard = sorted(linked.glob("*.safetensors"))[0]
    shard.unlink()
    shard.symlink_to(out / shard.name)
    with pytest.raises(
        CheckpointError, match=f"{shard.name}: is a link to {out / shard.name}, outside of the checkpoint"
    ):
        convert_bytes(linked, out, mask, force=True, allow_converted=True)
    assert digests(out) == old


@pytest.mark.parametrize("name", ["", ".", "..", "sub/.."])
def test_the_working_directory_is_no_out(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    work = tmp_path / "work"
    (work / "sub").mkdir(parents=True)
    monkeypatch.chdir(work)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="name a new one for OUT"):
        convert_bytes(source, Path(name), mask, force=True)
    assert snapshot(tmp_path) == before


def test_a_checkpoint_at_out_stays_where_its_replacement_fails_verification(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch, old: dict[str, str]
) -> None:
    seams.after_staging(monkeypatch, lambda staged: (staged / "config.json").write_text("{}"))
    with pytest.raises(VerificationError, match=r"config\.json"):
        convert_bytes(source, out, mask, force=True)
    assert digests(out) == old
    assert hidden_siblings(out) == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        *itertools.product(("copy_file_range", "pwrite", "fsync", "mkdir"), (errno.EIO, KeyboardInterrupt)),
        ("rename", errno.EIO),
        ("rename", KeyboardInterrupt),
    ],
)
def test_a_checkpoint_at_out_stays_where_its_replacement_is_cut_off(
    source: Path, out: Path, mask: Path, old: dict[str, str], call: str, error: int | type[BaseException]
) -> None:
    # Two renames make a replacement; the last fsync comes after both.
    raised = StorageError if isinstance(error, int) else error
    for index in range(2):
        with failing(call, index, error), pytest.raises(raised):
            convert_bytes(source, out, mask, force=True)
        assert out.exists()
        assert digests(out) == old
        assert hidden_siblings(out) == []


def test_a_checkpoint_that_cannot_be_put_back_is_named_and_put_back_by_the_next_run(
    source: Path, out: Path, mask: Path, old: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.rename, itertools.count()

    def failing_after_the_first(*args: Any, **kwargs: Any) -> None:
        if next(calls):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing_after_the_first)
        with pytest.raises(StorageError, match="is what stood at OUT, and cannot be put back") as caught:
            convert_bytes(source, out, mask, force=True)
    assert "OUT is as it was" not in str(caught.value)
    assert not out.exists()
    assert digests(out.with_name(".out.s4convert-replaced")) == old
    with pytest.raises(UsageError, match="is not empty"):
        convert_bytes(source, out, mask)
    assert digests(out) == old
    assert hidden_siblings(out) == []


def test_a_replaced_checkpoint_that_is_kept_for_a_power_cut_is_named(
    source: Path, out: Path, mask: Path, old: dict[str, str]
) -> None:
    with failing("fsync", -1, 0) as calls:
        convert_bytes(source, out, mask, force=True)
    replaced = out.with_name(".out.s4convert-replaced")
    with failing("fsync", next(calls) - 1, errno.EIO), pytest.raises(StorageError, match=f"and remove {replaced}"):
        convert_bytes(source, out, mask, force=True)
    assert replaced.is_dir()


def test_a_replaced_checkpoint_that_cannot_be_removed_is_named(
    source: Path, out: Path, mask: Path, old: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with failing("rename", 2, errno.EIO):
        convert_bytes(source, out, mask, force=True)
    assert f"{out.with_name('.out.s4convert-replaced')}: cannot be removed: Input/output error" in caplog.text
    verify_conversion(source, out, check_behaviour=False)


def test_force_does_not_replace_a_directory_that_is_no_checkpoint(source: Path, out: Path, mask: Path) -> None:
    out.mkdir()
    (out / "thesis.txt").write_text("the only copy")
    before = snapshot(out.parent)
    with pytest.raises(UsageError, match="holds something else than a conversion"):
        convert_bytes(source, out, mask, force=True)
    assert snapshot(out.parent) == before


def test_force_does_not_replace_a_project_that_has_a_config(source: Path, out: Path, mask: Path) -> None:
    out.mkdir()
    (out / "config.json").write_text('{"port": 8080}')
    (out / "firmware.bin").write_text("the only copy")
    before = snapshot(out.parent)
    with pytest.raises(UsageError, match="holds something else than a conversion"):
        convert_bytes(source, out, mask, force=True)
    assert snapshot(out.parent) == before


def test_an_in_that_is_named_like_outs_staging_directory_is_not_deleted(source: Path, mask: Path, out: Path) -> None:
    hidden = out.with_name(".out.s4convert-staging")
    source.rename(hidden)
    before = snapshot(hidden)
    with pytest.raises(UsageError, match=r"is where a conversion to .* works; choose another OUT"):
        convert_bytes(hidden, out, mask)
    assert snapshot(hidden) == before


def test_a_command_that_was_killed_does_not_stand_in_the_way_of_the_next(source: Path, out: Path, mask: Path) -> None:
    staging = out.with_name(".out.s4convert-staging")
    (staging / "assets").mkdir(parents=True)
    (staging / "config.json").write_text("half")
    out.with_name(".out.s4convert-lock").touch()
    outcome = run(source, out, "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0
    assert f"{staging}: removed; a conversion that was killed had left it" in outcome.stderr
    verify_conversion(source, out, check_behaviour=False)
    assert hidden_siblings(out) == []
