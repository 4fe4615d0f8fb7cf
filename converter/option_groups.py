"""What click does not have: options that stand in groups in the help, and a main job that needs no command's name."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

FILE = click.Path(path_type=Path)

_IN_FRONT_OF_A_COMMAND = ("--json", "-v", "-vv", "--verbose", "--debug", "-q", "--quiet")

FunctionT = TypeVar("FunctionT", bound=Callable[..., None])


class Command(click.Command):
    """A command whose options stand in groups in its help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                groups.setdefault(getattr(param, "group", "Options"), []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


class MainJobGroup(click.Group):
    """A group whose arguments, where they name no command, are those of the main job."""

    main_job = "convert"
    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            args = ["--help"]
        at = next((i for i, arg in enumerate(args) if not arg.startswith("-")), len(args))
        first = args[at] if at < len(args) else ""
        may_be_command = bool(first) and all(arg in _IN_FRONT_OF_A_COMMAND for arg in args[:at])
        if may_be_command and first in self.commands:
            args = [first, *args[:at], *args[at + 1 :]]
        elif args and args[0] not in ("-h", "--help", "--version"):
            if may_be_command and not ctx.resilient_parsing:
                self._refuse_misspelt(ctx, first)
            args = [self.main_job, *args]
        return super().parse_args(ctx, args)

    def _refuse_misspelt(self, ctx: click.Context, word: str) -> None:
        """A word without a slash that names nothing here is neither a checkpoint nor a command."""
        if "/" in word or os.path.lexists(word):
            return
        commands = [name for name, command in self.commands.items() if not command.hidden]
        near = difflib.get_close_matches(word, commands, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(commands)}"
        ctx.fail(f"no such command or directory: {word!r}; {hint}")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        main_job = self.commands[self.main_job]
        if incomplete.startswith("-"):
            return main_job.shell_complete(ctx, incomplete)
        return [*super().shell_complete(ctx, incomplete), CompletionItem(incomplete, type="dir")]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "IN OUT --mask MASK.json [OPTIONS]")
        formatter.write_usage(ctx.command_path, "IN OUT --rate RATE --calibration FILE [OPTIONS]", prefix="       ")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        self.commands[self.main_job].format_options(ctx, formatter)


def options(title: str, *decorators: Any) -> Callable[[FunctionT], FunctionT]:
    """Options that stand under *title* in the help, in their order."""

    def decorate(command: Any) -> Any:
        before = len(getattr(command, "__click_params__", ()))
        for decorator in reversed(decorators):
            command = decorator(command)
        for param in command.__click_params__[before:]:
            param.group = title
        return command

    return decorate


def options_of(command: click.Command, *names: str) -> Callable[[FunctionT], FunctionT]:
    """The options of another *command* that bear *names*, in their groups."""
    params = {param.name: param for param in command.params}

    def decorate(function: Any) -> Any:
        # click keeps the options of a function from the last one to the first
        function.__click_params__ = [*getattr(function, "__click_params__", ()), *(params[n] for n in reversed(names))]
        return function

    return decorate


def several(name: str, **settings: Any) -> Callable[[FunctionT], FunctionT]:
    """An option for a path that may be given more than once: None, one path, or a tuple of them."""

    def given(context: click.Context, param: click.Parameter, value: tuple[Path, ...]) -> Any:
        return value if len(value) > 1 else next(iter(value), None)

    return click.option(name, type=FILE, multiple=True, callback=given, **settings)
