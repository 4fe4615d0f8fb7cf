"""The command line with the Hub on the loopback, and what it is given."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from s4convert import convert
from s4convert.output.card import CARD_FILES
from tests.hub.client_process import ClientProcess
from tests.hub.server import LoopbackHub
from tests.support import command_line
from tests.support.command_line import Outcome
from tests.support.disk import digests
from tests.support.synthetic import Spec, write_checkpoint

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
PRUNED = {"pruned_heads": {"1": [0, 2]}}


@dataclass(frozen=True)
class CommandLine:
    """Runs the command under *environment*: in the client's process, where it never waits, or in one of its own."""

    client: ClientProcess
    environment: Mapping[str, str]

    def __call__(self, *arguments: object) -> Outcome:
        return self.client.run(self.environment, *arguments)

    def run_alone(self, *arguments: object) -> Outcome:
        """Run it in a process of its own."""
        return command_line.run(*arguments, environment=self.environment)

    def start_alone(self, *arguments: object) -> subprocess.Popen[str]:
        """Start it in a process of its own."""
        return command_line.start(*arguments, environment=self.environment)

    def under(self, **changes: str | None) -> CommandLine:
        """The same under a changed environment; None takes a variable away."""
        changed = {**self.environment, **changes}
        return replace(self, environment={name: value for name, value in changed.items() if value is not None})

    @property
    def home(self) -> Path:
        """Where the client keeps its cache and its token."""
        return Path(self.environment["HF_HOME"])


def write_conversion(directory: Path) -> Path:
    """A small conversion, ``out`` in *directory*, of the checkpoint ``in`` beside it, by ``mask.json``."""
    write_checkpoint(directory / "in", SPEC)
    (directory / "mask.json").write_text(json.dumps(PRUNED))
    convert(directory / "in", directory / "out", directory / "mask.json", check_behaviour=False)
    return directory / "out"


def contents(directory: Path) -> dict[str, bytes]:
    """What every file in *directory* holds, by its path."""
    return {name: (directory / name).read_bytes() for name in digests(directory)}


def written(out: Path) -> dict[str, str]:
    """The sha256 of every file in *out*, but for the card's and the manifest's."""
    return {name: digest for name, digest in digests(out).items() if name not in (*CARD_FILES, "s4convert.json")}


def digests_at(hub: LoopbackHub, repo_id: str, revision: str = "main") -> dict[str, str]:
    """The sha256 of every file on the Hub, but for the one that the Hub puts in every repository."""
    files = hub.files(repo_id, revision)
    files.pop(".gitattributes")
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
