"""The version of s4convert, and of what its results depend on."""

from __future__ import annotations

from functools import cache

__version__ = "0.1.0"

_LIBRARIES = ("torch", "transformers", "safetensors", "numpy")


@cache
def versions() -> dict[str, str]:
    """The versions of s4convert, Python and the libraries that a result depends on, by name."""
    import platform  # it takes longer to import than --help takes

    installed = {library: version for library in _LIBRARIES if (version := _installed(library)) is not None}
    return {"s4convert": __version__, "python": platform.python_version(), **installed}


@cache  # to read what is written of torch takes 20 ms
def _installed(library: str) -> str | None:
    """The version of *library*; None as in a tree that was never installed."""
    from importlib.metadata import PackageNotFoundError, version  # and so does this

    try:
        return version(library)
    except PackageNotFoundError:
        return None
