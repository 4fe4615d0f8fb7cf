"""The command line with the Hub on the loopback, and what it is given."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from s4convert import convert
from tests.hub.server import LoopbackHub
from tests.support.command_line import COMMAND, Outcome, run
from tests.support.disk import digests
from tests.support.synthetic import Spec, write_checkpoint

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
PRUNED = {"pruned_heads": {"1": [0, 2]}}

# The client waits up to 23 seconds between its tries; these waits are left out.
WITHOUT_WAITS = (
    sys.executable,
    "-c",
    "import time; time.sleep = lambda seconds: None; import s4convert.cli as cli; cli.main()",
)


def s4convert(environment: Mapping[str, str], *arguments: object, patient: bool = True) -> Outcome:
    """Run the command under *environment*; where it is not *patient*, the client tries again at once."""
    return run(*arguments, environment=environment, command=COMMAND if patient else WITHOUT_WAITS)


def write_conversion(directory: Path) -> Path:
    """A small conversion, ``out`` in *directory*, of the checkpoint ``in`` beside it, by ``mask.json``."""
    write_checkpoint(directory / "in", SPEC)
    (directory / "mask.json").write_text(json.dumps(PRUNED))
    convert(directory / "in", directory / "out", directory / "mask.json", check_behaviour=False)
    return directory / "out"


def contents(directory: Path) -> dict[str, bytes]:
    """What every file in *directory* holds, by its path."""
    return {name: (directory / name).read_bytes() for name in digests(directory)}


def digests_at(hub: LoopbackHub, repo_id: str, revision: str = "main") -> dict[str, str]:
    """The sha256 of every file on the Hub, but for the one that the Hub puts in every repository."""
    files = hub.files(repo_id, revision)
    files.pop(".gitattributes")
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
