"""What goes wrong between here and the Hub: one line, an exit code, nothing lost, and a second run that completes."""

from __future__ import annotations

import hashlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub.client_process import NEW_CLIENT
from tests.hub.commands import CommandLine, contents, digests_at, written
from tests.hub.conftest import TOKEN
from tests.hub.faults import Answer, CutBody, CutRequest, Delay, Kind, LoseAnswer, ShortenBody
from tests.hub.server import LoopbackHub
from tests.support.command_line import Outcome, outcome_of
from tests.support.disk import digests, hidden_siblings

STORED = "^/[0-9a-f]{16}/"  # in the Hub's storage of large files


@pytest.fixture
def original(converted: Path, hub: LoopbackHub) -> str:
    """What it was converted from, on the Hub."""
    hub.create_repo("lab/original")
    hub.commit("lab/original", contents(converted.parent / "in"))
    return "lab/original"


# --- a push ---------------------------------------------------------------------------------------------------

INVALID = {"X-Error-Message": "Invalid credentials in Authorization header"}
NOT_ACCEPTED = r"the Hub does not accept your token \(Invalid credentials in Authorization header\)"
BROKE_OFF = r"the connection to the Hub broke off \(\w+\)"  # and what the client calls that
NO_RIGHTS = (
    r"your token has no permission for this "
    r'\(You don\'t have the rights to create a model under the namespace "\w+"\)'
)
NEW_TOKEN = "make a new one, set HF_TOKEN or run hf auth login and "


@pytest.mark.parametrize(
    ("method", "path", "kind", "message", "remedy"),
    [
        ("GET", "/api/models/", Answer(401, INVALID), NOT_ACCEPTED, NEW_TOKEN),
        ("POST", "/repos/create", Answer(403), "your token has no permission for this", "use one that has and "),
        ("POST", "/repos/create", LoseAnswer(), BROKE_OFF, ""),
        ("GET", "/api/models/", Answer(500), "the Hub is at fault, HTTP 500", "wait a while and "),
        ("GET", "/tree/", Answer(503), "the Hub is at fault, HTTP 503", "wait a while and "),
        ("GET", "/tree/", Answer(200, {}, b"<html>"), "the Hub answered what is not JSON", "check HF_ENDPOINT and "),
        ("POST", "/preupload/", Answer(429, {"Retry-After": "7"}), "too many requests", "wait 7 seconds and "),
        ("POST", "/preupload/", Answer(413), "the Hub answered HTTP 413", ""),
        ("POST", "/objects/batch", CutRequest(), BROKE_OFF, ""),
        ("PUT", STORED, Answer(403), "the Hub's storage answered HTTP 403", ""),
        ("PUT", STORED, Answer(503), "the Hub's storage answered HTTP 503", ""),
        ("PUT", STORED, CutRequest(500), BROKE_OFF, ""),
        ("PUT", STORED, LoseAnswer(), BROKE_OFF, ""),
        ("POST", "/lfs/verify", Answer(404), "the Hub answered HTTP 404", ""),
        ("POST", "/commit/", Answer(409), "something else changed the repository meanwhile", ""),
        ("POST", "/commit/", Answer(412), "something else changed the repository meanwhile", ""),
        ("POST", "/commit/", Answer(429), "too many requests", "wait some minutes and "),
        ("POST", "/commit/", Answer(500), "the Hub is at fault, HTTP 500", "wait a while and "),
        ("POST", "/commit/", CutRequest(5), BROKE_OFF, ""),
        ("POST", "/commit/", LoseAnswer(), BROKE_OFF, ""),
    ],
)
def test_a_push_that_fails_leaves_out_whole_and_says_how_to_go_on(
    converted: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    method: str,
    path: str,
    kind: Kind,
    message: str,
    remedy: str,
) -> None:
    before = digests(converted)
    fault = hub.fail(method, path, kind, times=None)
    outcome = s4convert("push", converted, "alice/pruned")
    assert fault.hits
    assert outcome.exit_code == 4
    assert outcome.stdout == ""
    command = f"s4convert push {converted} alice/pruned"
    then = re.escape(f"; {converted} is whole; {remedy}run again: {command}")
    assert re.fullmatch(f"alice/pruned: {message}{then}", outcome.error)
    assert digests(converted) == before

    hub.faults.clear()
    again = s4convert(*command.split()[1:])
    assert again.exit_code == 0, again.stderr
    assert digests_at(hub, "alice/pruned") == digests(converted) == before


def test_what_was_sent_before_the_failure_is_not_sent_again(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    hub.fail("POST", "/commit/", Answer(500))
    assert s4convert("push", converted, "alice/pruned").exit_code == 4
    sent = [request.path for request in hub.requests if request.method == "PUT"]
    assert len(sent) == 2  # the shards
    assert s4convert("push", converted, "alice/pruned").exit_code == 0
    assert [request.path for request in hub.requests if request.method == "PUT"] == sent


def test_a_hub_that_has_trouble_for_a_moment_does_not_fail_a_push(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    faults = hub.fail("PUT", STORED, Answer(503)), hub.fail("PUT", STORED, CutRequest(500), skip=1)
    outcome = s4convert("push", converted, "alice/pruned")
    assert outcome.exit_code == 0, outcome.stderr
    assert [fault.hits for fault in faults] == [1, 1]
    assert all(line.startswith("s4convert: ") for line in outcome.stderr.splitlines())
    assert digests_at(hub, "alice/pruned") == digests(converted)


@pytest.mark.parametrize(
    ("changes", "repo_id", "message"),
    [
        ({"HF_TOKEN": ""}, "alice/pruned", "pushing needs a token; set HF_TOKEN or run hf auth login"),
        ({"HF_TOKEN": None}, "alice/pruned", "pushing needs a token; set HF_TOKEN or run hf auth login"),
        ({"HF_TOKEN": "hf_wrong"}, "alice/pruned", f"{NOT_ACCEPTED}; OUT is whole; {NEW_TOKEN}run again: PUSH"),
        (
            {"HF_TOKEN": "hf_ofTheReader"},
            "bob/pruned",
            f"{NO_RIGHTS}; OUT is whole; use one that has and run again: PUSH",
        ),
        ({}, "other/pruned", f"{NO_RIGHTS}; OUT is whole; use one that has and run again: PUSH"),
        (
            {"HF_HUB_OFFLINE": "1"},
            "alice/pruned",
            "HF_HUB_OFFLINE is set, and this needs the Hub; OUT is whole; unset it and run again: PUSH",
        ),
    ],
)
def test_a_push_without_permission_makes_nothing(
    converted: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    changes: dict[str, str | None],
    repo_id: str,
    message: str,
) -> None:
    hub.add_user("bob", "hf_ofTheReader", can_write=False)
    outcome = s4convert.under(**changes)("push", converted, repo_id)
    assert outcome.exit_code == 4
    told = message.replace("PUSH", f"s4convert push OUT {repo_id}").replace("OUT", re.escape(str(converted)))
    assert re.fullmatch(f"{repo_id}: {told}", outcome.error)
    assert not hub.repositories.by_id


# --- a download -----------------------------------------------------------------------------------------------

DISABLED = {"X-Error-Message": "Access to this resource is disabled."}
SHARD = "model-00001-of-00002.safetensors"
KEPT = "what has arrived is kept; run again"


@pytest.mark.parametrize(
    ("method", "path", "kind", "message"),
    [
        ("GET", "/api/models/", Answer(401, INVALID), f": {NOT_ACCEPTED}; {NEW_TOKEN}run again"),
        ("GET", "/api/models/", Answer(429, {"Retry-After": "7"}), ": too many requests; wait 7 seconds and run again"),
        ("GET", "/api/models/", Answer(500), ": the Hub is at fault, HTTP 500; wait a while and run again"),
        ("GET", "/api/models/", CutRequest(), f": {BROKE_OFF}; run again"),
        (
            *("GET", "/api/models/", Answer(200, {}, b"<html>")),
            ": the Hub answered what is not JSON; check HF_ENDPOINT and run again",
        ),
        (
            *("HEAD", "/resolve/", Answer(503)),
            ":config.json: the Hub is at fault, HTTP 503; wait a while and run again",
        ),
        ("HEAD", "/resolve/", CutRequest(), f":config.json: {BROKE_OFF}; run again"),
        (
            *("GET", "/resolve/", Answer(403, DISABLED)),
            r":config.json: the Hub does not give it out \(Access to this resource is disabled.\)",
        ),
        ("GET", f"{STORED}SHARD", Answer(403), f": the Hub's storage answered HTTP 403; {KEPT}"),
        ("GET", f"{STORED}SHARD", CutBody(300), f": {BROKE_OFF}; {KEPT}"),
        (
            *("GET", f"{STORED}SHARD", ShortenBody(300)),
            f": a file did not arrive whole: it should be of size SIZE but has size 300; {KEPT}",
        ),
    ],
)
def test_a_download_that_fails_leaves_nothing_and_a_second_one_completes(
    converted: Path,
    original: str,
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    method: str,
    path: str,
    kind: Kind,
    message: str,
) -> None:
    out = tmp_path / "out"
    arguments = (original, out, "--mask", converted.parent / "mask.json", "--no-verify", "--no-card")
    shard = (converted.parent / "in" / SHARD).read_bytes()
    fault = hub.fail(method, path.replace("SHARD", hashlib.sha256(shard).hexdigest()), kind, times=None)
    outcome = s4convert(*arguments)
    assert fault.hits
    assert outcome.exit_code == 4
    assert re.fullmatch("lab/original" + message.replace("SIZE", str(len(shard))), outcome.error)
    assert not out.exists()
    assert hidden_siblings(out) == []

    hub.faults.clear()
    again = s4convert(*arguments)
    assert again.exit_code == 0, again.stderr
    assert written(out) == written(converted)


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(
    converted: Path, original: str, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    kept = 10 * 2**20  # the client writes blocks of so many bytes
    table = bytes(kept + 2000)
    path = STORED + hashlib.sha256(table).hexdigest()
    hub.commit(original, {"table.npy": table})
    hub.fail("GET", path, CutBody(kept + 1000))
    arguments = (original, tmp_path / "out", "--mask", converted.parent / "mask.json", "--no-verify", "--no-card")
    if not NEW_CLIENT:  # which goes on in the same run
        assert s4convert(*arguments).exit_code == 4
    assert s4convert(*arguments).exit_code == 0
    assert (tmp_path / "out" / "table.npy").stat().st_size == kept + 2000
    asked = [request for request in hub.requests if request.method == "GET" and re.match(path, request.path)]
    assert [request.headers.get("range") for request in asked] == [None, f"bytes={kept}-"]


def hide(hub: LoopbackHub) -> None:
    hub.repositories.by_id["lab/original"].private = True


def gate(hub: LoopbackHub) -> None:
    hub.repositories.by_id["lab/original"].gated = True


def nothing(hub: LoopbackHub) -> None:
    """The repository is as it is."""


NO_DIRECTORY = "(there is no directory of that name here)"
HIDDEN = f"no such repository on the Hub, or a private one {NO_DIRECTORY}; check the name, and for a private one LOG_IN"
HIDDEN_FROM_BOB = (
    f"no such repository on the Hub, or a private one that your token may not read {NO_DIRECTORY}; check both"
)
GATED = "config.json: is gated; ask for access at HUB/lab/original"


@pytest.mark.parametrize(
    ("setting", "token", "source", "message"),
    [
        (nothing, TOKEN, "lab/nothing", f"lab/nothing: {HIDDEN_FROM_BOB}"),
        (nothing, "", "lab/nothing", f"lab/nothing: {HIDDEN}"),
        (nothing, TOKEN, "lab/original@v9", "lab/original@v9: has no such branch, tag or commit; check the revision"),
        (hide, "", "lab/original", f"lab/original: {HIDDEN}"),
        (hide, "hf_ofBob", "lab/original", f"lab/original: {HIDDEN_FROM_BOB}"),
        (gate, "", "lab/original", f"lab/original:{GATED}, LOG_IN and run again"),
        (gate, "hf_ofBob", "lab/original", f"lab/original:{GATED} and run again"),
        (
            *(nothing, "hf_wrong", "lab/original"),
            "lab/original: the Hub does not accept your token (Invalid credentials in Authorization header); "
            "make a new one, LOG_IN and run again",
        ),
    ],
)
def test_what_may_not_be_read_is_one_line(
    converted: Path,
    original: str,
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    setting: Callable[[LoopbackHub], None],
    token: str,
    source: str,
    message: str,
) -> None:
    hub.add_user("bob", "hf_ofBob")
    setting(hub)
    arguments = (source, tmp_path / "out", "--mask", converted.parent / "mask.json", "--no-verify")
    outcome = s4convert.under(HF_TOKEN=token)(*arguments)
    assert outcome.exit_code == 4
    told = message.replace("LOG_IN", "set HF_TOKEN or run hf auth login").replace("HUB/", f"{hub.endpoint}/")
    assert outcome.stderr == f"s4convert: error: {told}\n"
    assert not (tmp_path / "out").exists()


def test_a_mask_that_is_not_there_is_one_line(
    original: str, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    outcome = s4convert(original, tmp_path / "out", "--mask", "lab/original:mask.json", "--no-verify")
    assert outcome.exit_code == 4
    assert outcome.stderr == (
        "s4convert: error: lab/original:mask.json: no such file in the repository; check its path\n"
    )


def test_no_hub_at_all_is_one_line(converted: Path, tmp_path: Path, s4convert: CommandLine) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and not listening
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        unconnected = s4convert.under(HF_ENDPOINT=endpoint)
        arguments = ("lab/original", tmp_path / "out", "--mask", converted.parent / "mask.json")
        down = unconnected(*arguments)
        up = unconnected("push", converted, "alice/pruned")
    assert (down.exit_code, up.exit_code) == (4, 4)
    error = "ConnectError" if NEW_CLIENT else "ConnectionError"
    what = f"the Hub at {endpoint} cannot be reached ({error})"
    check = "check the network and HF_ENDPOINT and run again"
    assert down.error == f"lab/original: {what}, and there is no directory of that name here; {check}"
    assert up.error == (f"alice/pruned: {what}; {converted} is whole; {check}: s4convert push {converted} alice/pruned")


def test_a_cache_that_cannot_be_written_is_the_disks_fault(
    converted: Path, original: str, tmp_path: Path, s4convert: CommandLine
) -> None:
    (tmp_path / "file").touch()
    arguments = (original, tmp_path / "out", "--mask", converted.parent / "mask.json", "--no-verify")
    outcome = s4convert.under(HF_HOME=str(tmp_path / "file" / "home"))(*arguments)
    assert outcome.exit_code == 3
    assert outcome.error == f"{tmp_path / 'file' / 'home'}: Not a directory; mend that and run again"


# --- interrupts -----------------------------------------------------------------------------------------------


def wait_for(hub: LoopbackHub, process: subprocess.Popen[str], method: str, path: str) -> None:
    """Wait until the process has made such a request."""
    while not any(seen.method == method and re.search(path, seen.path) for seen in list(hub.requests)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "exit_code", "told"),
    [
        (
            signal.SIGINT,
            130,
            "s4convert: error: interrupted; OUT is whole; run again: s4convert push OUT alice/pruned\n",
        ),
        (
            signal.SIGTERM,
            130,
            "s4convert: error: interrupted; OUT is whole; run again: s4convert push OUT alice/pruned\n",
        ),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_an_upload_that_is_interrupted_leaves_out_whole(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine, number: signal.Signals, exit_code: int, told: str
) -> None:
    before = digests(converted)
    hub.fail("PUT", STORED, Delay(600), times=None)  # longer than the process may take to end
    process = s4convert.start_alone("push", converted, "alice/pruned")
    wait_for(hub, process, "PUT", STORED)
    process.send_signal(number)
    outcome = outcome_of(process)
    assert outcome == Outcome(exit_code, stdout="", stderr=told.replace("OUT", str(converted)))
    assert digests(converted) == before

    hub.faults.clear()
    assert s4convert("push", converted, "alice/pruned").exit_code == 0
    assert digests_at(hub, "alice/pruned") == before


@pytest.mark.parametrize(
    ("number", "exit_code", "told"),
    [
        (
            *(signal.SIGINT, 130),
            "s4convert: error: interrupted; nothing was written; what was downloaded is kept\n",
        ),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_a_download_that_is_interrupted_leaves_nothing(
    converted: Path,
    original: str,
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    number: signal.Signals,
    exit_code: int,
    told: str,
) -> None:
    hub.fail("GET", STORED, Delay(600), times=None)
    out = tmp_path / "out"
    arguments = (original, out, "--mask", converted.parent / "mask.json", "--no-verify", "--no-card")
    process = s4convert.start_alone(*arguments)
    wait_for(hub, process, "GET", STORED)
    process.send_signal(number)
    assert outcome_of(process) == Outcome(exit_code, stdout="", stderr=told)
    assert not out.exists()
    assert hidden_siblings(out) == []

    hub.faults.clear()
    assert s4convert(*arguments).exit_code == 0
