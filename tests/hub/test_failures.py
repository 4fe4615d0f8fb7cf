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

from tests.hub.commands import CommandLine, contents, digests_at
from tests.hub.conftest import TOKEN
from tests.hub.faults import Answer, CutBody, CutRequest, Delay, Kind, LoseAnswer, ShortenBody
from tests.hub.server import LoopbackHub
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


@pytest.mark.parametrize(
    ("method", "path", "kind", "message"),
    [
        *(("GET", "/api/models/", Answer(401, INVALID), "the Hub does not accept your token"),),
        *(("POST", "/repos/create", Answer(403), "your token has no permission for this.*; use one that has and"),),
        *(("POST", "/repos/create", LoseAnswer(), "the connection to the Hub broke off"),),
        *(("GET", "/api/models/", Answer(500), "the Hub is at fault, HTTP 500.*; wait a while and"),),
        *(("GET", "/tree/", Answer(503), "the Hub is at fault, HTTP 503.*; wait a while and"),),
        *(("GET", "/tree/", Answer(200, {}, b"<html>"), "the Hub answered what is not JSON"),),
        *(("POST", "/preupload/", Answer(429, {"Retry-After": "7"}), "too many requests; .*; wait 7 seconds and"),),
        *(("POST", "/preupload/", Answer(413), "the Hub answered HTTP 413"),),
        *(("POST", "/objects/batch", CutRequest(), "the connection to the Hub broke off"),),
        *(("PUT", STORED, Answer(403), "the Hub's storage answered HTTP 403"),),
        *(("PUT", STORED, Answer(503), "the Hub's storage answered HTTP 503"),),
        *(("PUT", STORED, CutRequest(500), "the connection to the Hub broke off"),),
        *(("PUT", STORED, LoseAnswer(), "the connection to the Hub broke off"),),
        *(("POST", "/lfs/verify", Answer(404), "the Hub answered HTTP 404"),),
        *(("POST", "/commit/", Answer(409), "something else changed the repository meanwhile"),),
        *(("POST", "/commit/", Answer(412), "something else changed the repository meanwhile"),),
        *(("POST", "/commit/", Answer(429), "too many requests; .*; wait some minutes and"),),
        *(("POST", "/commit/", Answer(500), "the Hub is at fault, HTTP 500"),),
        *(("POST", "/commit/", CutRequest(5), "the connection to the Hub broke off"),),
        *(("POST", "/commit/", LoseAnswer(), "the connection to the Hub broke off"),),
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
) -> None:
    before = digests(converted)
    fault = hub.fail(method, path, kind, times=None)
    outcome = s4convert("push", converted, "alice/pruned")
    assert fault.hits
    assert outcome.exit_code == 4
    assert outcome.stdout == ""
    command = f"s4convert push {converted} alice/pruned"
    assert re.fullmatch(
        f"alice/pruned: {message}.*; {re.escape(str(converted))} is whole; (.*)?run again: {re.escape(command)}"
        if " and" not in message
        else f"alice/pruned: {message} run again: {re.escape(command)}",
        outcome.error,
    )
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
    hub.fail("PUT", STORED, Answer(503))
    hub.fail("PUT", STORED, CutRequest(500), skip=1)
    outcome = s4convert("push", converted, "alice/pruned")
    assert outcome.exit_code == 0, outcome.stderr
    assert all(line.startswith("s4convert: ") for line in outcome.stderr.splitlines())
    assert digests_at(hub, "alice/pruned") == digests(converted)


@pytest.mark.parametrize(
    ("changes", "repo_id", "message"),
    [
        ({"HF_TOKEN": ""}, "alice/pruned", "pushing needs a token; .*set HF_TOKEN or run hf auth login"),
        ({"HF_TOKEN": "hf_wrong"}, "alice/pruned", "the Hub does not accept your token"),
        ({"HF_TOKEN": "hf_ofTheReader"}, "bob/pruned", "your token has no permission for this"),
        ({}, "other/pruned", "your token has no permission for this"),
        ({"HF_HUB_OFFLINE": "1"}, "alice/pruned", "HF_HUB_OFFLINE is set, and this needs the Hub"),
    ],
)
def test_a_push_without_permission_makes_nothing(
    converted: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    changes: dict[str, str],
    repo_id: str,
    message: str,
) -> None:
    hub.add_user("bob", "hf_ofTheReader", can_write=False)
    outcome = s4convert.under(**changes)("push", converted, repo_id)
    assert outcome.exit_code == 4
    assert re.match(f"{repo_id}: {message}", outcome.error)
    assert not hub.repositories.by_id


# --- a download -----------------------------------------------------------------------------------------------

DISABLED = {"X-Error-Message": "Access to this resource is disabled."}


@pytest.mark.parametrize(
    ("method", "path", "kind", "message"),
    [
        ("GET", "/api/models/", Answer(401, INVALID), "lab/original: the Hub does not accept your token"),
        ("GET", "/api/models/", Answer(429, {"Retry-After": "7"}), "too many requests; wait 7 seconds and run again"),
        (
            "GET",
            "/api/models/",
            Answer(500),
            "lab/original: the Hub is at fault, HTTP 500.*; wait a while and run again",
        ),
        ("GET", "/api/models/", CutRequest(), "lab/original: the connection to the Hub broke off"),
        ("GET", "/api/models/", Answer(200, {}, b"<html>"), "lab/original: the Hub answered what is not JSON"),
        ("HEAD", "/resolve/", Answer(503), "lab/original:config.json: the Hub is at fault, HTTP 503"),
        ("HEAD", "/resolve/", CutRequest(), "lab/original:config.json: the connection to the Hub broke off"),
        ("GET", "/resolve/", Answer(403, DISABLED), "lab/original:config.json: the Hub does not give it out"),
        ("GET", STORED, Answer(403), "lab/original: the Hub's storage answered HTTP 403.*; what has arrived is kept"),
        ("GET", STORED, CutBody(300), "lab/original: the connection to the Hub broke off.*; what has arrived is kept"),
        (
            "GET",
            STORED,
            ShortenBody(300),
            "a file did not arrive whole: it should be of size [0-9]+ but has size 300; ",
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
    fault = hub.fail(method, path, kind, times=None)
    outcome = s4convert(*arguments)
    assert fault.hits
    assert outcome.exit_code == 4
    assert re.search(message, outcome.error)
    assert not out.exists()
    assert hidden_siblings(out) == []

    hub.faults.clear()
    again = s4convert(*arguments)
    assert again.exit_code == 0, again.stderr
    shards = {name: digest for name, digest in digests(converted).items() if name.endswith(".safetensors")}
    assert shards.items() <= digests(out).items()


def test_a_download_that_was_cut_off_goes_on_where_it_stopped(
    converted: Path, original: str, tmp_path: Path, hub: LoopbackHub, s4convert: CommandLine
) -> None:
    kept = 10 * 2**20  # the client writes blocks of so many bytes
    table = bytes(kept + 2000)
    path = STORED + hashlib.sha256(table).hexdigest()
    hub.commit(original, {"table.npy": table})
    hub.fail("GET", path, CutBody(kept + 1000))
    arguments = (original, tmp_path / "out", "--mask", converted.parent / "mask.json", "--no-verify", "--no-card")
    if s4convert(*arguments).exit_code != 0:  # newer clients go on in the same run
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


NO_DIRECTORY = r"\(there is no directory of that name here\)"


@pytest.mark.parametrize(
    ("setting", "token", "source", "message"),
    [
        (
            nothing,
            TOKEN,
            "lab/nothing",
            f"lab/nothing: no such repository on the Hub, or a private one .*{NO_DIRECTORY}",
        ),
        (
            nothing,
            "",
            "lab/nothing",
            f"lab/nothing: no such repository on the Hub, or a private one {NO_DIRECTORY}; check",
        ),
        (nothing, TOKEN, "lab/original@v9", "lab/original@v9: has no such branch, tag or commit; check the revision$"),
        (hide, "", "lab/original", "or a private one .*, and for a private one set HF_TOKEN or run hf auth login$"),
        (hide, "hf_ofBob", "lab/original", "or a private one that your token may not read"),
        (
            gate,
            "",
            "lab/original",
            "is gated; .*ask for access at http.*/lab/original, set HF_TOKEN or run hf auth login",
        ),
        (gate, "hf_ofBob", "lab/original", "is gated; .*ask for access at http.*/lab/original and run again$"),
        (nothing, "hf_wrong", "lab/original", "the Hub does not accept your token"),
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
    assert len(outcome.stderr.splitlines()) == 1
    assert re.search(message, outcome.error)
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
    what = rf"the Hub at {endpoint} cannot be reached \(\w+\)"
    assert re.match(f"lab/original: {what}, and there is no directory of that name here; check the network", down.error)
    assert re.match(f"alice/pruned: {what}; .* is whole; check the network and HF_ENDPOINT and run again: ", up.error)


def test_a_cache_that_cannot_be_written_is_the_disks_fault(
    converted: Path, original: str, tmp_path: Path, s4convert: CommandLine
) -> None:
    (tmp_path / "file").touch()
    arguments = (original, tmp_path / "out", "--mask", converted.parent / "mask.json", "--no-verify")
    outcome = s4convert.under(HF_HOME=str(tmp_path / "file" / "home"))(*arguments)
    assert outcome.exit_code == 3
    assert re.match(f"{tmp_path / 'file'}.*: Not a directory; ", outcome.error)


# --- interrupts -----------------------------------------------------------------------------------------------


def wait_for(hub: LoopbackHub, process: subprocess.Popen[str], method: str, path: str) -> None:
    """Wait until the process has made such a request."""
    while not any(seen.method == method and re.search(path, seen.path) for seen in list(hub.requests)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_upload_that_is_interrupted_leaves_out_whole(
    converted: Path, hub: LoopbackHub, s4convert: CommandLine, number: signal.Signals
) -> None:
    before = digests(converted)
    hub.fail("PUT", STORED, Delay(60), times=None)  # longer than the process may take to end
    process = s4convert.start_alone("push", converted, "alice/pruned")
    wait_for(hub, process, "PUT", STORED)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    command = f"s4convert push {converted} alice/pruned"
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert stderr.splitlines()[-1] == f"s4convert: error: interrupted; {converted} is whole; run again: {command}"
    assert stdout == ""
    assert digests(converted) == before

    hub.faults.clear()
    assert s4convert(*command.split()[1:]).exit_code == 0
    assert digests_at(hub, "alice/pruned") == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_is_interrupted_leaves_nothing(
    converted: Path,
    original: str,
    tmp_path: Path,
    hub: LoopbackHub,
    s4convert: CommandLine,
    number: signal.Signals,
) -> None:
    hub.fail("GET", STORED, Delay(60), times=None)
    out = tmp_path / "out"
    arguments = (original, out, "--mask", converted.parent / "mask.json", "--no-verify", "--no-card")
    process = s4convert.start_alone(*arguments)
    wait_for(hub, process, "GET", STORED)
    process.send_signal(number)
    stderr = process.communicate(timeout=30)[1]
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert stderr.splitlines()[-1].startswith("s4convert: error: interrupted; nothing was written")
    assert not out.exists()
    assert hidden_siblings(out) == []

    hub.faults.clear()
    assert s4convert(*arguments).exit_code == 0
