"""No token and no signature is ever shown or written, however much is asked for and whatever goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub.commands import CommandLine, contents
from tests.hub.faults import Answer, CutRequest, Kind
from tests.hub.server import LoopbackHub
from tests.support.command_line import Outcome
from tests.support.disk import digests

TOKEN = "alices-own-token-4711"  # of no form that tokens usually have

# What -vv sets in time for the client's import; the client's process has imported it before.
LOUD = {"HF_HUB_VERBOSITY": "debug"}

ECHO = {"X-Error-Message": f"the token {TOKEN} in 'Authorization: Bearer {TOKEN}' is not good enough"}


@pytest.fixture(params=["the environment", "the client's file"])
def signed_in(request: pytest.FixtureRequest, hub: LoopbackHub, s4convert: CommandLine, converted: Path) -> CommandLine:
    """Where alice's token is; what was converted is in a private repository."""
    hub.repositories.users.clear()
    hub.add_user("alice", TOKEN)
    hub.create_repo("alice/original", private=True)
    hub.commit("alice/original", contents(converted.parent / "in"))
    if request.param == "the environment":
        return s4convert.under(HF_TOKEN=TOKEN)
    s4convert.home.mkdir()
    (s4convert.home / "token").write_text(TOKEN)
    return s4convert.under(HF_TOKEN=None)


def assert_nothing_is_told(outcome: Outcome, written: Path) -> None:
    """Neither *outcome* nor any file in *written* holds a token or a signature; the client's own token file may."""
    told = outcome.stdout + outcome.stderr
    assert "Request" in told  # the libraries did tell what they do
    assert TOKEN not in told
    assert "signature=" not in told
    for name in digests(written):
        if name != "hf-home/token":
            assert TOKEN.encode() not in (written / name).read_bytes(), name


@pytest.mark.parametrize("debug", [{}, {"HF_DEBUG": "1"}], ids=["", "HF_DEBUG"])
def test_in_what_succeeds(converted: Path, tmp_path: Path, signed_in: CommandLine, debug: dict[str, str]) -> None:
    out, mask = tmp_path / "out", converted.parent / "mask.json"
    loud = signed_in.under(**LOUD, **debug)
    down = loud("alice/original", out, "--mask", mask, "--no-verify", "-vv", "--debug")
    assert down.exit_code == 0, down.stderr
    assert_nothing_is_told(down, tmp_path)
    up = loud("push", out, "alice/pruned", "-vv", "--debug")
    assert up.exit_code == 0, up.stderr
    assert "PUT" in up.stderr
    assert_nothing_is_told(up, tmp_path)


@pytest.mark.parametrize("signed_in", ["the environment"], indirect=True)
def test_in_what_a_process_of_its_own_tells(converted: Path, tmp_path: Path, signed_in: CommandLine) -> None:
    outcome = signed_in.run_alone("push", converted, "alice/pruned", "-vv", "--debug")
    assert outcome.exit_code == 0, outcome.stderr
    assert "PUT" in outcome.stderr
    assert_nothing_is_told(outcome, tmp_path)


@pytest.mark.parametrize("debug", [{}, {"HF_DEBUG": "1"}], ids=["", "HF_DEBUG"])
@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/api/models/", Answer(401, ECHO)),
        ("PUT", "", Answer(403, ECHO)),
        ("PUT", "", CutRequest(100)),
        ("POST", "/commit/", Answer(500, ECHO)),
    ],
)
def test_in_what_fails(
    converted: Path,
    tmp_path: Path,
    hub: LoopbackHub,
    signed_in: CommandLine,
    debug: dict[str, str],
    method: str,
    path: str,
    kind: Kind,
) -> None:
    hub.fail(method, path, kind, times=None)
    loud = signed_in.under(**LOUD, **debug)
    outcome = loud("push", converted, "alice/pruned", "-vv", "--debug")
    assert outcome.exit_code == 4
    assert "Traceback (most recent call last):" in outcome.stderr
    assert_nothing_is_told(outcome, tmp_path)


def test_what_the_hub_says_of_a_token_is_shown_without_it(
    converted: Path, hub: LoopbackHub, signed_in: CommandLine
) -> None:
    hub.fail("GET", "/api/models/", Answer(401, ECHO))
    outcome = signed_in("push", converted, "alice/pruned")
    assert outcome.exit_code == 4
    assert "(the token <hidden> in 'Authorization: Bearer <hidden>' is not good enough)" in outcome.error
