"""README.md and docs/: what they show runs, every option stands in them, and what they point to exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from s4convert import __version__
from s4convert.cli import cli
from tests.support.command_line import ROOT
from tests.support.environments import in_the_newest_environment
from tests.support.warm_python import warm, warm_commands

README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
MARK = "<!-- runnable -->"
BLOCK = re.compile(rf"^(?P<mark>{MARK}\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    is_runnable: bool

    @property
    def commands(self) -> list[str]:
        """The shell commands in it, each with its continued lines."""
        if self.language == "bash":
            return [self.text]
        return re.findall(r"^\$ ((?:.*\\\n)*.*)", self.text, re.MULTILINE) if self.language == "console" else []

    @property
    def shown(self) -> list[str]:
        """The output that is shown, where it is not left out by an ellipsis."""
        output = re.sub(r"^\$ (?:.*\\\n)*.*", "", self.text, flags=re.MULTILINE)
        return [line for line in output.splitlines() if line.strip() not in ("", "...")]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["language"], match["text"], match["mark"] is not None) for match in found]


def pieces(page: Path) -> Iterator[str]:
    """What the page sets as code and may be about the command line: shell commands and spans."""
    for block in blocks(page):
        yield from block.commands
    yield from re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text(encoding="utf-8")))


# --- what runs ------------------------------------------------------------------------------------------------


def without_figures(line: str) -> str:
    """*line* as any machine prints it: figures are only said to be there."""
    return " ".join(re.sub(r"[-+]?\d[\d.,e+-]*", "#", line).split())


def run_blocks(page: Path, directory: Path) -> None:
    """Run every runnable block of *page* in *directory*, and look for the output that it shows."""
    path = f"{warm_commands()}{os.pathsep}{os.environ['PATH']}"
    for block in filter(lambda block: block.is_runnable, blocks(page)):
        script = [warm("python"), "-c", block.text]
        if block.language != "python":
            script = ["bash", "-e", "-c", "\n".join(block.commands)]
        done = subprocess.run(
            script,
            cwd=directory,
            env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = f"{name_of(page)}\n{block.text}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert "Warning" not in done.stderr, said
        if block.language == "console":
            printed = map(without_figures, done.stdout.splitlines())
            for line in block.shown:
                assert without_figures(line) in printed, f"{line!r} is not printed there: {said}"


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which everything was done that README.md shows."""
    directory = tmp_path_factory.mktemp("readme")
    run_blocks(README, directory)
    return directory


@in_the_newest_environment
def test_what_the_readme_shows_runs(after_readme: Path) -> None:
    for out in ("demo/mini-llava-pruned", "mini-llava-pruned", "pruned-in-python"):
        assert (after_readme / out / "s4convert.json").is_file()


@in_the_newest_environment
@pytest.mark.parametrize("page", [page for page in PAGES[1:] if MARK in page.read_text(encoding="utf-8")], ids=name_of)
def test_what_a_page_shows_runs_after_the_demo(page: Path, after_readme: Path, tmp_path: Path) -> None:
    shutil.copytree(after_readme / "demo", tmp_path / "demo")
    run_blocks(page, tmp_path)


def test_the_command_that_pip_installs_starts() -> None:
    installed = Path(sys.executable).with_name("s4convert")
    done = subprocess.run([installed, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"s4convert, version {__version__}\n"), done.stderr


def test_every_command_is_run_and_nothing_is_pushed() -> None:
    run = [block for page in PAGES for block in blocks(page) if block.is_runnable]
    assert {block.language for block in run} <= {"bash", "console", "python"}
    assert len(run) == sum(page.read_text(encoding="utf-8").count(MARK) for page in PAGES)
    said = [piece for block in run for command in block.commands for piece in command.splitlines()]
    assert {command_of(piece) for piece in said} - {None} == set(cli.commands)
    assert all("--dry-run" in piece for piece in said if "push" in piece.split())


# --- commands and options -------------------------------------------------------------------------------------


def options_of(command: click.Command) -> set[str]:
    names = {"help_option_names": ["-h", "--help"]}  # as the group says: click keeps the option that it makes of them
    params = command.get_params(click.Context(command, **names))
    return {name for param in params if isinstance(param, click.Option) for name in param.opts if name[:2] == "--"}


def command_of(piece: str) -> str | None:
    """The command that *piece* calls, the main job's where it names none; None where it is no call."""
    words = piece.split()
    if "s4convert" not in words[:-1]:
        return None
    name = words[words.index("s4convert") + 1]
    return name if name in cli.commands else cli.main_job if "--mask" in words else None


OPTIONS = {name: options_of(command) for name, command in cli.commands.items()}
ALL_OPTIONS = options_of(cli).union(*OPTIONS.values())


def test_every_command_and_option_is_documented() -> None:
    said = [piece for page in PAGES for piece in pieces(page)]
    assert {command_of(piece) for piece in said} >= set(cli.commands)
    assert {option for piece in said for option in OPTION.findall(piece)} >= ALL_OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_a_page_names_exists(page: Path) -> None:
    for piece in pieces(page):
        if piece.startswith("--") or "s4convert" in piece:
            known = OPTIONS.get(command_of(piece) or "", ALL_OPTIONS)
            assert set(OPTION.findall(piece)) <= known, piece


# --- links ----------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of *page*."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert set(re.findall(r"\]\((docs/[\w.]+)", text)) >= {name_of(page) for page in PAGES[1:]}
