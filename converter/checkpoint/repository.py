"""Where on the Hugging Face Hub a checkpoint's directory came from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Repository:
    """The *files* (paths inside it) of the repository *repo_id* at *commit*, a hash of 40 digits."""

    repo_id: str
    commit: str
    files: frozenset[str]

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit}"
