"""What a conversion was made from and how, as far as neither its checkpoint nor its mask says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..calibration.statistics import Statistics
from ..compensation import MomentsSource


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


def in_words(said: Mapping[str, Any]) -> str:
    """What is said in a word or a number, or in a list of such things; as of calibration data."""
    parts = []
    for name, value in said.items():
        if isinstance(value, list):
            parts += [in_words(one) for one in value if isinstance(one, Mapping)]
        elif isinstance(value, str | int | float):
            parts.append(f"{name.replace('_', ' ')} {' '.join(str(value).split())}")
    return ", ".join(part for part in parts if part)
