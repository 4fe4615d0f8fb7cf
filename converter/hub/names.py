"""Names on the Hugging Face Hub: ``org/name``, ``org/name@revision``, ``org/name:path/to/file``, with or without
``hf://`` in front. A name that exists on the disk is a path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, shown

# One slash after hf: as well, because a Path turns two into one.
_NAME = re.compile(
    r"(?P<scheme>hf:/{1,2})?(?P<repo_id>[^/@:]+/[^/@:]+)(?:@(?P<revision>[^:]+))?(?::(?P<file>.+))?", re.DOTALL
)


@dataclass(frozen=True)
class HubName:
    """A repository, its *revision* (branch, tag or commit; None for the main branch) and a *file* in it, or None."""

    repo_id: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repo_id}{revision}" + ("" if self.file is None else f":{self.file}")


def checkpoint_name(given: Path | str) -> HubName | None:
    """The repository that *given* names, or None for a path; UsageError at ``hf://`` without a repository."""
    return _parse(given, with_file=False)


def file_name(given: Path | str) -> HubName | None:
    """The file in a repository that *given* names, or None for a path; UsageError at ``hf://`` without a file."""
    return _parse(given, with_file=True)


def check_repo_id(text: str) -> None:
    """Raise UsageError unless *text* is the name of a repository, ``org/name``."""
    reason = _fault(text) if text.count("/") == 1 else "it has one slash"
    if reason:
        raise UsageError(f"{shown(text)}: is not the name of a repository on the Hub; give it as ORG/NAME ({reason})")


def check_branch(text: str) -> None:
    """Raise UsageError unless *text* can name a branch, by the rules of ``git check-ref-format``."""
    parts = text.split("/")
    forbidden = re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{", text)
    if (
        forbidden
        or not all(parts)
        or any(part.startswith((".", "-")) or part.endswith((".lock", ".")) for part in parts)
    ):
        raise UsageError(f"`revision` {shown(text)}: cannot be the name of a branch; choose another")


def _parse(given: Path | str, *, with_file: bool) -> HubName | None:
    text = os.fspath(given)
    if os.path.lexists(text):
        return None
    match = _NAME.fullmatch(text)
    is_wanted = match is not None and (match["file"] is not None) == with_file and _is_inside(match["file"])
    if match is not None and is_wanted and not _fault(match["repo_id"]):
        return HubName(match["repo_id"], match["revision"], match["file"])
    if re.match("hf:/", text):
        form = "hf://ORG/NAME[@REVISION]:FILE" if with_file else "hf://ORG/NAME[@REVISION]"
        raise UsageError(f"{shown(text)}: is not of the form {form}")
    return None


def _is_inside(file: str | None) -> bool:
    """Whether *file* is None or a path inside a repository."""
    return file is None or not {"", ".", ".."} & set(file.split("/"))


def _fault(repo_id: str) -> str | None:
    """The fault that the Hub's client finds in *repo_id*, or None."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        return str(error).partition(": '")[0].rstrip(".")
    return None
