"""The Hub on the loopback as tests get it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.client_process import ClientProcess
from tests.hub.commands import CommandLine, write_conversion
from tests.hub.server import LoopbackHub

TOKEN = "hf_loopbackWriteToken"


@pytest.fixture(scope="session")
def running_hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: LoopbackHub) -> Iterator[LoopbackHub]:
    """An empty Hub with one user, ``alice`` of the organisation ``lab``, whose token is ``TOKEN``."""
    running_hub.reset()
    running_hub.add_user("alice", TOKEN, orgs=("lab",))
    yield running_hub
    assert not running_hub.errors, running_hub.errors[0]


def environment_for(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process whose Hub is at *endpoint*, whose cache is in *home*, signed in as ``alice``."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return inherited | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # huggingface_hub 2.x with hf_xet uploads by Xet alone, without asking the Hub, unless this is set.
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture(scope="session")
def client_process(running_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientProcess]:
    process = ClientProcess(environment_for(running_hub.endpoint, tmp_path_factory.mktemp("hf-home")))
    yield process
    process.close()


@pytest.fixture
def client(hub: LoopbackHub, client_process: ClientProcess) -> ClientProcess:
    """The client, signed in as ``alice``; all tests share its process and its cache."""
    return client_process


@pytest.fixture
def s4convert(hub: LoopbackHub, client_process: ClientProcess, tmp_path: Path) -> CommandLine:
    """The command line, signed in as ``alice``, with a cache of this test alone."""
    return CommandLine(client_process, environment_for(hub.endpoint, tmp_path / "hf-home"))


@pytest.fixture(scope="session")
def converted(client_process: ClientProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion that no test may write to; ``in`` and ``mask.json``, which it was made of, lie beside it."""
    # There, so that here no heavy library needs to be imported.
    return Path(client_process.call(write_conversion, tmp_path_factory.mktemp("conversion")))
