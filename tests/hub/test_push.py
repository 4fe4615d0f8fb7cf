"""``s4convert push`` and ``--push-to-hub``: what arrives, what is refused, and what a second push does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import MINI_LLAVA
from tests.hub.commands import CommandLine, contents, digests_at
from tests.hub.conftest import TOKEN
from tests.hub.faults import Answer
from tests.hub.server import LoopbackHub
from tests.support.disk import digests, snapshot


@pytest.fixture
def own(converted: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may do anything with."""
    return Path(shutil.copytree(converted, tmp_path / "own"))


def puts(hub: LoopbackHub) -> int:
    """How many files were sent to the storage."""
    return sum(request.method == "PUT" for request in hub.requests)


# --- what arrives ---------------------------------------------------------------------------------------------


def test_the_pushed_tree_is_the_manifest(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    outcome = s4convert.run_alone("push", converted, "alice/pruned")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stderr == ""
    commit = hub.repositories.by_id["alice/pruned"].branches["main"]
    assert outcome.stdout.splitlines()[-1] == f"pushed: {hub.endpoint}/alice/pruned/commit/{commit}"

    stated = json.loads((converted / "s4convert.json").read_text())["files"]
    at_the_hub = digests_at(hub, "alice/pruned")
    assert at_the_hub == digests(converted)
    assert at_the_hub.keys() == stated.keys() | {"s4convert.json"}
    assert {name: at_the_hub[name] for name in stated} == {name: file["sha256"] for name, file in stated.items()}


def test_all_goes_in_one_commit_with_the_message(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    assert s4convert("push", converted, "lab/pruned", "--message", "30 %, scaled").exit_code == 0
    repository = hub.repositories.by_id["lab/pruned"]
    titles = [commit.title for commit in repository.history(repository.resolve("main"))]
    assert titles == ["30 %, scaled", "initial commit"]


def test_a_repository_is_made_public_or_private(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    assert s4convert("push", converted, "alice/public").exit_code == 0
    assert s4convert("push", converted, "alice/private", "--private").exit_code == 0
    assert [hub.repositories.by_id[f"alice/{name}"].private for name in ("public", "private")] == [False, True]


def test_a_branch_is_made(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    outcome = s4convert("push", converted, "alice/pruned", "--revision", "thirty/percent")
    assert outcome.exit_code == 0, outcome.stderr
    assert digests_at(hub, "alice/pruned", "thirty/percent") == digests(converted)
    assert digests_at(hub, "alice/pruned") == {}


def test_a_pull_request_leaves_the_branch_alone(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    hub.create_repo("somebody/pruned")
    outcome = s4convert("push", converted, "somebody/pruned", "--create-pr", "-q")
    assert outcome.exit_code == 0, outcome.stderr
    assert outcome.stdout == f"{hub.endpoint}/somebody/pruned/discussions/1\n"
    assert digests_at(hub, "somebody/pruned", "refs/pr/1") == digests(converted)
    assert digests_at(hub, "somebody/pruned") == {}


def test_files_of_the_same_names_are_replaced(own: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    hub.create_repo("alice/pruned")
    hub.commit("alice/pruned", contents(own) | {"config.json": b"{}"})
    assert s4convert("push", own, "alice/pruned").exit_code == 0
    assert digests_at(hub, "alice/pruned") == digests(own)
    assert puts(hub) == 0  # the Hub had the weights


def test_json_tells_the_files_and_the_place(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    pushed = json.loads(s4convert("push", converted, "alice/pruned", "--json").stdout)
    assert {name: file["sha256"] for name, file in pushed["files"].items()} == digests(converted)
    commit = hub.repositories.by_id["alice/pruned"].branches["main"]
    assert (pushed["repo_id"], pushed["commit"], pushed["is_new"]) == ("alice/pruned", commit, True)


def test_strays_stay_behind_and_are_named(own: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    (own / "notes.txt").write_text("mine")
    (own / ".git").mkdir()
    (own / ".git" / "config").write_text("not even looked at")
    outcome = s4convert("push", own, "alice/pruned")
    assert outcome.exit_code == 0
    assert outcome.stderr == f"s4convert: {own / 'notes.txt'}: stays behind, the conversion did not write it\n"
    assert digests_at(hub, "alice/pruned").keys() == digests(own).keys() - {"notes.txt", ".git/config"}


def test_a_push_writes_nothing_here(own: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    before = snapshot(own.parent)
    assert s4convert("push", own, "alice/pruned").exit_code == 0
    after = {name: seen for name, seen in snapshot(own.parent).items() if not name.startswith("hf-home")}
    assert after == before


# --- a second push --------------------------------------------------------------------------------------------


def test_a_second_push_does_nothing_and_says_so(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    assert s4convert("push", converted, "alice/pruned").exit_code == 0
    repository = hub.repositories.by_id["alice/pruned"]
    head, requests = repository.branches["main"], len(hub.requests)
    outcome = s4convert("push", converted, "alice/pruned")
    assert outcome.exit_code == 0
    assert "were on the Hub already, nothing was done" in outcome.stdout
    assert f"/alice/pruned/tree/{head}" in outcome.stdout
    assert repository.branches["main"] == head
    assert {request.method for request in hub.requests[requests:]} == {"GET"}


def test_the_same_files_on_a_new_branch_are_not_sent_again(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    assert s4convert("push", converted, "alice/pruned").exit_code == 0
    sent = puts(hub)
    assert s4convert("push", converted, "alice/pruned", "--revision", "v1").exit_code == 0
    assert digests_at(hub, "alice/pruned", "v1") == digests(converted)
    assert puts(hub) == sent


# --- what is refused before the network ---------------------------------------------------------------------


def break_manifest(out: Path) -> None:
    (out / "s4convert.json").write_text('{"format": "s4convert/0", "files": {}}')


def change_a_byte(out: Path) -> None:
    path = out / "model-00001-of-00002.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "own: no such directory; give one that s4convert wrote"),
        (lambda out: (out / "s4convert.json").unlink(), "own: has no s4convert.json, so s4convert did not write it"),
        (break_manifest, "own/s4convert.json: format is 's4convert/0'"),
        (change_a_byte, "own/model-00001-of-00002.safetensors: is not what s4convert.json says of it"),
        (lambda out: os.truncate(out / "config.json", 5), "own/config.json: is not what s4convert.json says of it"),
        (lambda out: (out / "config.json").unlink(), "own/config.json: is missing; convert the original again"),
        (lambda out: (out / "link").symlink_to("config.json"), "own/link: is not a regular file"),
        (lambda out: (out / "folder").symlink_to(MINI_LLAVA), "own/folder: is not a regular file"),
        (lambda out: os.mkfifo(out / "pipe"), "own/pipe: is not a regular file"),
    ],
)
def test_a_directory_that_is_not_as_it_was_written_is_refused(
    own: Path, hub: LoopbackHub, s4convert: CommandLine, damage: Callable[[Path], object], message: str
) -> None:
    damage(own)
    outcome = s4convert("push", own, "alice/pruned")
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pruned"], "'pruned': is not the name of a repository on the Hub; give it as ORG/NAME"),
        (["alice/pruned@main"], "'alice/pruned@main': is not the name of a repository on the Hub"),
        (["alice/pru--ned"], "'alice/pru--ned': is not the name of a repository on the Hub"),
        (["alice/pruned", "--revision", "a b"], "--revision 'a b': cannot be the name of a branch"),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine, arguments: list[str], message: str
) -> None:
    outcome = s4convert("push", converted, *arguments)
    assert outcome.exit_code == 2
    assert message in outcome.error
    assert hub.requests == []


def test_a_dry_run_lists_what_would_go_and_asks_nobody(own: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    (own / "notes.txt").write_text("mine")
    outcome = s4convert("push", own, "alice/pruned", "--dry-run")
    assert outcome.exit_code == 0
    lines = [line.split() for line in outcome.stdout.splitlines()]
    for name in digests(own).keys() - {"notes.txt"}:
        assert [f"{(own / name).stat().st_size:,}", name] in lines
    as_json = json.loads(s4convert("push", own, "alice/pruned", "--dry-run", "--json").stdout)
    assert as_json["files"].keys() == digests(own).keys() - {"notes.txt"}
    assert as_json["stays_behind"] == ["notes.txt"]
    assert hub.requests == []


# --- what is refused on the Hub -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ([], "alice/other"),
        (["--revision", "new"], "alice/other (where the branch new would begin)"),
        (["--create-pr"], "alice/other"),
    ],
)
def test_a_repository_with_other_files_is_refused(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine, arguments: list[str], where: str
) -> None:
    hub.create_repo("alice/other")
    hub.commit("alice/other", {"pytorch_model.bin": b"unpruned", "config.json": b"{}"})
    before = dict(hub.repositories.by_id["alice/other"].branches)
    outcome = s4convert("push", converted, "alice/other", *arguments)
    assert outcome.exit_code == 4
    assert outcome.error.startswith(f"{where}: holds pytorch_model.bin, which is not of this conversion and ")
    assert hub.repositories.by_id["alice/other"].branches == before
    assert {request.method for request in hub.requests} == {"GET"}


def test_a_public_repository_does_not_take_what_is_meant_to_be_private(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.create_repo("alice/public")
    outcome = s4convert("push", converted, "alice/public", "--private")
    assert outcome.exit_code == 4
    assert "alice/public: exists and is public" in outcome.error
    assert digests_at(hub, "alice/public") == {}


def test_the_repository_it_was_converted_from_is_refused(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine, tmp_path: Path
) -> None:
    hub.create_repo("lab/original")
    hub.commit("lab/original", contents(converted.parent / "in"))
    before = digests_at(hub, "lab/original")
    out, mask = tmp_path / "out", converted.parent / "mask.json"
    assert s4convert("lab/original", out, "--mask", mask, "--no-verify", "--no-card").exit_code == 0
    outcome = s4convert("push", out, "lab/original")
    assert outcome.exit_code == 2
    assert outcome.error.startswith("lab/original: is what ")
    assert digests_at(hub, "lab/original") == before
    assert s4convert("push", out, "lab/original", "--revision", "pruned").exit_code == 0
    assert digests_at(hub, "lab/original", "pruned") == digests(out)
    assert digests_at(hub, "lab/original") == before


def test_what_arrived_is_compared_with_the_manifest(converted: Path, hub: LoopbackHub, s4convert: CommandLine) -> None:
    wrong = [{"type": "file", "path": "README.md", "size": 1, "oid": "0" * 40}]
    hub.fail("GET", "/tree/", Answer(200, {"Content-Type": "application/json"}, json.dumps(wrong).encode()), skip=1)
    outcome = s4convert("push", converted, "alice/pruned")
    assert outcome.exit_code == 4
    commit = hub.repositories.by_id["alice/pruned"].branches["main"]
    size = (converted / "README.md").stat().st_size
    assert outcome.error == (
        f"alice/pruned@{commit}: README.md has 1 bytes, not {size:,}; {converted} is whole; "
        f"run again: s4convert push {converted} alice/pruned"
    )


@pytest.mark.parametrize("name", ["llava-prompt", "pruned"])
def test_a_repository_that_stock_llava_would_load_as_another_class_is_told(
    tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine, name: str
) -> None:
    from s4convert import HeadMask, convert
    from tests.support import synthetic
    from tests.support.synthetic import Spec, write_checkpoint

    source = write_checkpoint(tmp_path / "llava-in", Spec(layout=synthetic.ORIGINAL))
    mask = HeadMask(Spec().num_heads, ((0,), *((),) * (Spec().num_layers - 1)))
    convert(source, tmp_path / "llava-out", mask, check_behaviour=False, card=False)
    outcome = s4convert("push", tmp_path / "llava-out", f"alice/{name}")
    assert outcome.exit_code == 0
    assert outcome.stderr.startswith(f"s4convert: alice/{name}: stock LLaVA goes by a name and would load this one as ")
    assert len(outcome.stderr.splitlines()) == 1


# --- --push-to-hub --------------------------------------------------------------------------------------------

WHO = ["/api/whoami-v2"]


def test_a_conversion_is_pushed_once_it_is_verified(
    tmp_path: Path, mini_mask_file: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    out = tmp_path / "out"
    outcome = s4convert(MINI_LLAVA, out, "--mask", mini_mask_file, "--push-to-hub", "lab/pruned")
    assert outcome.exit_code == 0, outcome.stderr
    assert "verdict: OK" in outcome.stdout
    assert outcome.stdout.splitlines()[-1].startswith(f"pushed: {hub.endpoint}/lab/pruned/commit/")
    assert digests_at(hub, "lab/pruned") == digests(out)


def test_what_is_not_verified_is_not_pushed(
    converted: Path, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    arguments = (converted.parent / "in", tmp_path / "out", "--mask", converted.parent / "mask.json")
    outcome = s4convert(*arguments, "--no-verify", "--push-to-hub", "alice/pruned")
    assert outcome.exit_code == 2
    assert "only what was verified is pushed" in outcome.error
    assert not (tmp_path / "out").exists()
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo_id", "exit_code", "message", "asked"),
    [
        (TOKEN, "pruned", 2, "'pruned': is not the name of a repository on the Hub; give it as ORG/NAME", []),
        ("", "alice/pruned", 4, "alice/pruned: pushing needs a token; set HF_TOKEN or run hf auth login", []),
        ("hf_wrong", "alice/pruned", 4, "alice/pruned: the Hub does not accept your token; make a new one", WHO),
        ("hf_ofTheReader", "bob/pruned", 4, "bob/pruned: your token may only read; use one of role write", WHO),
        (TOKEN, "other/pruned", 4, "other/pruned: your token is alice's, who is not in other; push to alice/...", WHO),
    ],
)
def test_a_push_that_cannot_end_well_is_refused_before_the_conversion(
    converted: Path,
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    token: str,
    repo_id: str,
    exit_code: int,
    message: str,
    asked: list[str],
) -> None:
    hub.add_user("bob", "hf_ofTheReader", can_write=False)
    arguments = (converted.parent / "in", tmp_path / "out", "--mask", converted.parent / "mask.json")
    outcome = s4convert.under(HF_TOKEN=token)(*arguments, "--push-to-hub", repo_id)
    assert outcome.exit_code == exit_code
    assert outcome.error.startswith(message)
    assert not (tmp_path / "out").exists()
    assert [request.path for request in hub.requests] == asked


def test_a_push_that_fails_takes_nothing_from_the_conversion(
    tmp_path: Path, mini_mask_file: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.fail("POST", "/commit/", Answer(500))
    out = tmp_path / "out"
    arguments = (MINI_LLAVA, out, "--mask", mini_mask_file, "--push-to-hub", "alice/pruned", "--json", "--no-card")
    outcome = s4convert(*arguments)
    assert outcome.exit_code == 4
    result = json.loads(outcome.stdout)
    assert result["out"] == str(out)
    assert "pushed" not in result
    command = f"s4convert push {out} alice/pruned"
    assert outcome.error.endswith(f"{out} is whole; wait a while and run again: {command}")
    before = digests(out)
    assert s4convert(*command.split()[1:]).exit_code == 0
    assert digests_at(hub, "alice/pruned") == digests(out) == before
