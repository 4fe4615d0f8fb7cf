"""No file of 0/1 flags is ever read with the wrong polarity, whatever it looks like and whatever else is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from s4convert.checkpoint import Geometry
from s4convert.errors import MaskError
from s4convert.mask import parse_schedule
from s4convert.mask.files import load_mask

Flags = list[list[int]]


def by_layer(flags: Flags) -> dict[str, list[int]]:
    return {str(layer): row for layer, row in enumerate(flags)}


def write_json(change: Callable[[Flags], object]) -> Callable[[Path, Flags], Path]:
    def write(directory: Path, flags: Flags) -> Path:
        path = directory / "mask.json"
        path.write_text(json.dumps(change(flags)))
        return path

    return write


def write_npy(dtype: str) -> Callable[[Path, Flags], Path]:
    def write(directory: Path, flags: Flags) -> Path:
        np.save(directory / "mask.npy", np.array(flags, dtype))
        return directory / "mask.npy"

    return write


def write_torch(dtype: torch.dtype) -> Callable[[Path, Flags], Path]:
    def write(directory: Path, flags: Flags) -> Path:
        torch.save(torch.tensor(flags, dtype=dtype), directory / "mask.pt")
        return directory / "mask.pt"

    return write


def write_safetensors(directory: Path, flags: Flags) -> Path:
    save_file({"head_mask": np.array(flags, np.bool_)}, directory / "mask.safetensors")
    return directory / "mask.safetensors"


def with_totals(count: Callable[[int], int]) -> Callable[[Flags], object]:
    """A calibration file; *count* gives the total of pruned heads from the number of ones."""
    return lambda flags: {
        "pruned_heads": by_layer(flags),
        "total_pruned_heads": count(sum(map(sum, flags))),
        "total_heads": len(flags) * len(flags[0]),
    }


CALIBRATION = {"calibration", "calibration of other totals"}
SPELLINGS = {
    "calibration": write_json(with_totals(lambda ones: ones)),
    "calibration of other totals": write_json(with_totals(lambda ones: ones + 1)),
    "list": write_json(lambda flags: flags),
    "list of booleans": write_json(lambda flags: [[bool(flag) for flag in row] for row in flags]),
    "list of fractions": write_json(lambda flags: [[float(flag) for flag in row] for row in flags]),
    "bare object": write_json(by_layer),
    "bare object of fractions": write_json(lambda flags: by_layer([[float(f) for f in row] for row in flags])),  # type: ignore[misc]
    "pruned_heads": write_json(lambda flags: {"pruned_heads": by_layer(flags)}),
    "pruned_heads list": write_json(lambda flags: {"pruned_heads": flags}),
    "npy bool": write_npy("bool"),
    "npy int64": write_npy("int64"),
    "npy float32": write_npy("float32"),
    "pt bool": write_torch(torch.bool),
    "pt bfloat16": write_torch(torch.bfloat16),
    "safetensors": write_safetensors,
}
KEPT = write_json(lambda flags: {"components": {"attention_heads": {"kept": by_layer(flags), "total": len(flags[0])}}})


@st.composite
def flags(draw: st.DrawFn) -> Flags:
    num_layers, num_heads = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    row = st.lists(st.integers(0, 1), min_size=num_heads, max_size=num_heads)
    return draw(st.lists(row, min_size=num_layers, max_size=num_layers))


def read(path: Path, flags: Flags, **hints: Any) -> tuple[tuple[int, ...], ...] | None:
    """The pruned heads, or None where the file is refused."""
    geometry = Geometry(len(flags), len(flags[0]), len(flags[0]), 2, 8)
    try:
        return load_mask(path, geometry, **hints).pruned
    except MaskError:
        return None


def heads_with(flag: int, flags: Flags) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(head for head, value in enumerate(row) if value == flag) for row in flags)


def is_usable(pruned: tuple[tuple[int, ...], ...], flags: Flags) -> bool:
    return any(pruned) and all(len(heads) < len(flags[0]) for heads in pruned)


@settings(deadline=None, max_examples=400)
@given(flags(), st.sampled_from(sorted(SPELLINGS)), st.sampled_from([None, "keep", "prune"]), st.booleans())
def test_flags_mean_what_the_caller_says_and_nothing_without(
    tmp_path_factory: pytest.TempPathFactory, flags: Flags, spelling: str, polarity: str | None, scheduled: bool
) -> None:
    path = SPELLINGS[spelling](tmp_path_factory.getbasetemp(), flags)
    schedule = parse_schedule("uniform", "0.5") if scheduled else None
    pruned = read(path, flags, polarity=polarity, schedule=schedule)
    if spelling in CALIBRATION:
        readable, meant = spelling == "calibration" and polarity != "keep", heads_with(1, flags)
    else:
        readable, meant = polarity is not None, heads_with(0 if polarity == "keep" else 1, flags)
    expected = meant if readable and not scheduled and is_usable(meant, flags) else None
    assert pruned == expected


@settings(deadline=None, max_examples=200)
@given(flags(), st.sampled_from([None, "keep", "prune"]))
def test_kept_flags_are_never_read_as_pruned(
    tmp_path_factory: pytest.TempPathFactory, flags: Flags, polarity: str | None
) -> None:
    path = KEPT(tmp_path_factory.getbasetemp(), flags)
    meant = heads_with(0, flags)
    expected = meant if polarity == "keep" and is_usable(meant, flags) else None
    assert read(path, flags, polarity=polarity) == expected
