"""Where the tests reach into the package: each place has a name here, and no test names an inner module to patch it.

The disk itself (``os.fsync``, ``os.rename`` and the like) is patched by the tests where they need it: the package
calls it through ``os``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import s4convert.checkpoint.checkpoint as _checkpoint
import s4convert.compensation.figures as _figures
import s4convert.compensation.fitting as _fitting
import s4convert.jobs.convert as _conversion
import s4convert.rewrite.staging as _staging
import s4convert.rewrite.writer as _writer
import s4convert.verify.structure as _structure
from s4convert.compensation import HeadMix, MomentsSource
from s4convert.rewrite.plan import Edit, Plan

BLOCK_BYTES = _checkpoint.BLOCK_BYTES


# --- a conversion: it plans, stages the files, verifies them and commits ----------------------------------------


def change_edits(patch: pytest.MonkeyPatch, change: Callable[[Edit], list[Edit]]) -> None:
    """Let a conversion's plan have, for each of its edits, what *change* makes of it."""
    make_plan = _conversion.make_plan

    def changed(*arguments: Any) -> Plan:
        plan = make_plan(*arguments)
        return replace(plan, edits=tuple(after for edit in plan.edits for after in change(edit)))

    patch.setattr(_conversion, "make_plan", changed)


def before_staging(patch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen, or be raised, when OUT is locked and nothing of it is written."""
    stage = _conversion.stage

    def staged(*args: Any, **kwargs: Any) -> None:
        happens()
        stage(*args, **kwargs)

    patch.setattr(_conversion, "stage", staged)


def after_staging(patch: pytest.MonkeyPatch, happens: Callable[[Path], object]) -> None:
    """Let something happen to the directory of staged files, which are not verified yet."""
    stage = _conversion.stage

    def staged(checkpoint: object, plan: object, directory: Path, *args: Any, **kwargs: Any) -> None:
        stage(checkpoint, plan, directory, *args, **kwargs)  # type: ignore[arg-type]
        happens(directory)

    patch.setattr(_conversion, "stage", staged)


def before_the_last_look(patch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen when all is written and verified, and is looked at once more before it is committed."""
    wait = _writer.DiskFlusher.wait

    def waited(flusher: _writer.DiskFlusher) -> None:
        wait(flusher)
        happens()

    patch.setattr(_writer.DiskFlusher, "wait", waited)


# --- the compensations ------------------------------------------------------------------------------------------


def change_formula(patch: pytest.MonkeyPatch, mode: str, formula: Callable[..., HeadMix]) -> None:
    """Let *mode* be fitted by *formula*, of a layer, its moments or None, and the damping, wherever it is used."""
    table = dict(_fitting.MODES)
    table[mode] = replace(table[mode], fit=formula)
    for module in (_fitting, _figures):
        patch.setattr(module, "MODES", table)
    if mode == "least-squares":
        patch.setattr(_fitting, "least_squares", formula)


def fit_to(patch: pytest.MonkeyPatch, moments: MomentsSource) -> None:
    """Let a conversion fit to these *moments*, whichever it was given, and be checked by those that it was given."""
    fit = _conversion.fit
    patch.setattr(_conversion, "fit", lambda *args, **kwargs: fit(*args, **(kwargs | {"moments": moments})))


# --- the writer -------------------------------------------------------------------------------------------------


def round_by(patch: pytest.MonkeyPatch, encode: Callable[[np.ndarray, str], bytes]) -> None:
    """Let the writer turn numbers into stored ones by *encode*."""
    patch.setattr(_writer, "encode", encode)


def edit_in_blocks_of(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let the writer hold so much of an edit in memory."""
    patch.setattr(_writer, "EDIT_BYTES", num_bytes)


def pass_in_blocks_of(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let so much be copied, and be checked and hashed, at a time."""
    patch.setattr(_writer, "COPY_BYTES", num_bytes)
    patch.setattr(_structure, "BLOCK_BYTES", num_bytes)


def look_products_up(patch: pytest.MonkeyPatch) -> None:
    """Let weights of any size be multiplied, and be checked, by a table of all products."""
    for module in (_writer, _structure):
        patch.setattr(module, "TABLE_BYTES", 0)


def believe_there_is_space(patch: pytest.MonkeyPatch) -> None:
    """Let the check of the free space, which comes before the first byte, see plenty."""
    patch.setattr(_staging, "free_bytes", lambda path: 1 << 60)


# --- what reads and measures ------------------------------------------------------------------------------------


def read_in_blocks_of(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let so much of a weight be read at a time where silent heads are looked for."""
    patch.setattr(_checkpoint, "BLOCK_BYTES", num_bytes)


def cut_samples_at(patch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """Let calibration samples have so many tokens at the most."""
    patch.setattr("s4convert.calibration.inputs.MAX_TOKENS", num_tokens)


def leave_for_fisher(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """Let the metric fisher find so much free space for what it keeps while it runs."""
    patch.setattr("s4convert.saliency.fisher.free_bytes", lambda path: num_bytes)


def tick_in_search(patch: pytest.MonkeyPatch) -> None:
    """Let the clock of a search go by a second whenever it is looked at, so that a proposal takes two."""
    clock = SimpleNamespace(monotonic=partial(next, count()))
    patch.setattr("s4convert.study.search.time", clock)


def rows_of_attention() -> int:
    """How many rows of attention weights there are at a time."""
    from s4convert.saliency.cross_attention import ROWS  # which imports torch

    return ROWS


def attend_in_rows_of(patch: pytest.MonkeyPatch, num_rows: int) -> None:
    """Let there be so many."""
    patch.setattr("s4convert.saliency.cross_attention.ROWS", num_rows)


def fitted_layers(patch: pytest.MonkeyPatch) -> list[int]:
    """The number of each layer whose map is fitted from now on, once for each fit."""
    choose, layers = _fitting.choose, []

    def counted(mode: str, layer: Any, moments: Any) -> Any:
        layers.append(layer.number)
        return choose(mode, layer, moments)

    patch.setattr(_fitting, "choose", counted)
    return layers


def read_projections_as(patch: pytest.MonkeyPatch, value: float) -> None:
    """Let every projection that a metric or a fit reads be full of *value*."""
    read = _checkpoint.Checkpoint.read_projection
    patch.setattr(_checkpoint.Checkpoint, "read_projection", lambda *place: np.full_like(read(*place), value))
