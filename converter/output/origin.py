"""What a conversion was made from and how, as far as neither its checkpoint nor its mask says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..calibration.statistics import Statistics
from ..compensation import MomentsSource
from ..errors import UsageError, shown


@dataclass(frozen=True)
class Origin:
    """*made_by* is the command or the call. *calibration* describes the data that the compensation was fitted to or
    measured on, empty where a function gave the moments, None without any. *shard_bytes* bounds the shards built from
    ``.bin`` files.
    """

    made_by: str
    calibration: Mapping[str, Any] | None = None
    shard_bytes: int | None = None


def describe_moments(moments: MomentsSource | None) -> dict[str, Any] | None:
    """The data behind *moments*: the file, the tokens, and how they were used; empty where that is not known.

    Raises:
        CalibrationError, StorageError: the statistics have no description.
    """
    if moments is None:
        return None
    if not isinstance(moments, Statistics):
        return {}
    import torch

    # The sums of a fit are cut up by threads, so another number of them rounds otherwise.
    return moments.describe() | {"threads": torch.get_num_threads()}


def files_of(calibration: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The files that a description of *calibration* names; UsageError where it is malformed."""
    kinds = {"file": str, "sha256": str, "samples": int, "window_tokens": int}
    files = calibration.get("files", [])
    if not isinstance(files, list) or any(
        not isinstance(file, dict) or any(not isinstance(file.get(name), kind) for name, kind in kinds.items())
        for file in files
    ):
        raise UsageError(f"the files of the calibration data are {shown(files)}; convert the original again")
    return files


def taken_of(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How much of *files*, which :func:`files_of` gave, was taken, as the options ``num_samples`` and ``window``."""
    # Of each file so many samples are taken, or all that it has; and questions may be longer than windows.
    return {
        "num_samples": max(file["samples"] for file in files),
        "window": min(file["window_tokens"] for file in files),
    }


def in_words(said: Mapping[str, Any]) -> str:
    """What is said in a word or a number, or in a list of such things; as of calibration data."""
    parts = []
    for name, value in said.items():
        if isinstance(value, list):
            parts += [in_words(one) for one in value if isinstance(one, Mapping)]
        elif isinstance(value, str | int | float):
            parts.append(f"{name.replace('_', ' ')} {' '.join(str(value).split())}")
    return ", ".join(part for part in parts if part)
