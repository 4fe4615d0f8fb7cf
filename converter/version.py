"""The version of s4convert, and of what its results depend on."""

from __future__ import annotations

from functools import cache

__version__ = "0.1.0"

_LIBRARIES = ("torch", "transformers", "safetensors", "numpy")


@cache
def versions() -> dict[str, str]:
    """The versions of s4convert, Python and the libraries that a result depends on, by name."""
    import platform  # these two take longer to import than --help takes
    from importlib.metadata import PackageNotFoundError, version

    found = {"s4convert": __version__, "python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:  # as in a tree that was never installed
            continue
    return found
