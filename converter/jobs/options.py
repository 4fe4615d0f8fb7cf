"""What the options of all jobs share: they are frozen, checked when they are made, and made from keywords."""

from __future__ import annotations

import types
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import UsageError, shown

OptionsT = TypeVar("OptionsT", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a job; *progress* shows bars on stderr while it works, where that is a terminal.

    Raises:
        UsageError: an option is of another type than its annotation says.
    """

    progress: bool = False

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for option in fields(self):
            value, accepted = getattr(self, option.name), _classes(hints[option.name])
            if isinstance(value, int) and not isinstance(value, bool) and float in accepted:
                continue
            if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
                names = " or ".join("None" if each is types.NoneType else each.__name__ for each in accepted)
                raise UsageError(f"`{option.name}` is {shown(value)}, not of type {names}")


def options_of(kind: type[OptionsT], options: OptionsT | None, settings: dict[str, Any]) -> OptionsT:
    """*options*, or the defaults of their *kind*, changed by *settings*.

    Raises:
        TypeError: a setting is no option.
        UsageError: an option means nothing.
    """
    return kind(**settings) if options is None else replace(options, **settings)


def as_path(given: str | Path | None) -> Path | None:
    """*given* as a path, if it is."""
    return None if given is None else Path(given)


def _classes(annotation: Any) -> tuple[type, ...]:
    """The classes that isinstance takes for *annotation*."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(each for part in get_args(annotation) for each in _classes(part))
    return (get_origin(annotation) or annotation,)
