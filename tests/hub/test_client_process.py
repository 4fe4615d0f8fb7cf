"""In the client's process, a command finds the client as in a process of its own, and leaves it as it was."""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client_process import ClientProcess
from tests.hub.commands import CommandLine
from tests.support.command_line import LEVELS_SET


def client_settings() -> dict[str, Any]:
    """What the client has read from the environment."""
    from huggingface_hub import constants, utils

    settings = {name: value for name, value in vars(constants).items() if name.isupper()}
    return settings | {"verbosity": utils.logging.get_verbosity()}


def process_settings() -> dict[str, Any]:
    """What a command may set up for the whole of its process."""
    loggers = {name: logging.getLogger(name) for name in ("", *LEVELS_SET)}
    handlers = {number: repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    return {
        "levels": {name: logger.level for name, logger in loggers.items()},
        "handlers": {name: list(map(repr, logger.handlers)) for name, logger in loggers.items()},
        "signals": handlers,
        "environment": dict(os.environ),
        "arguments": sys.argv,
        "streams": [repr(sys.stdout), repr(sys.stderr)],
    }


def test_under_another_environment_the_client_is_as_in_a_process_that_began_with_it(
    client: ClientProcess, s4convert: CommandLine
) -> None:
    environment = s4convert.under(
        HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1", HF_HUB_VERBOSITY="info", HF_HUB_DISABLE_XET=None
    ).environment
    with closing(ClientProcess(environment)) as another:
        expected = another.call(client_settings)
    assert Path(expected["HF_HOME"]) == s4convert.home

    before = client.call(client_settings)
    assert client.call_under(environment, client_settings) == expected
    assert client.call(client_settings) == before


@pytest.mark.parametrize("arguments", [("push", "nothing", "alice/pruned"), ("inspect", "lab/nothing")])
def test_a_command_leaves_the_process_as_it_was(
    client: ClientProcess, s4convert: CommandLine, arguments: tuple[str, ...]
) -> None:
    before = client.call(process_settings)
    outcome = s4convert(*arguments, "-vv", "--debug")
    assert "Traceback (most recent call last):" in outcome.stderr
    assert client.call(process_settings) == before
