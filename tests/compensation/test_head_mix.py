"""A mix of heads folded into the weight computes what it computes on the heads' outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from s4convert.compensation import ROW_BLOCK, HeadMix
from s4convert.compensation.fitting import keep

HEAD_DIM, NUM_HEADS = 3, 5
COLUMNS = HEAD_DIM * NUM_HEADS
PRUNED, KEPT = [0, 1, 2, 9, 10, 11], [3, 4, 5, 6, 7, 8, 12, 13, 14]


def random(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(shape)).normal(0, 1, shape)


def make_mix(*, dense: bool) -> HeadMix:
    factors = np.repeat(np.array([0, 1.25, -0.5, 0, 2], np.float32), HEAD_DIM)
    return HeadMix(HEAD_DIM, (0, 3), factors, random(6, 9) if dense else None)


def matrix(mix: HeadMix) -> np.ndarray:
    """T, by its definition."""
    full = np.diag(mix.factors.astype(np.float64))
    for row, pruned in enumerate(PRUNED):
        for column, kept in enumerate(KEPT):
            full[pruned, kept] = 0.0 if mix.transfer is None else mix.transfer[row, column]
    return full


@pytest.mark.parametrize("dense", [False, True])
def test_rows_become_their_product_with_the_map(dense: bool) -> None:
    mix = make_mix(dense=dense)
    rows = random(2 * ROW_BLOCK + 7, COLUMNS).astype(np.float32)
    mixed = mix.apply_to_rows(rows)
    assert mixed.dtype == (np.float64 if dense else np.float32)
    np.testing.assert_allclose(mixed, rows @ matrix(mix), rtol=1e-14 if dense else 1e-6, atol=1e-14)
    assert mix.pruned_columns.tolist() == PRUNED
    assert mix.kept_columns.tolist() == KEPT
    assert (mixed[:, PRUNED] == 0).all() and not np.signbit(mixed[:, PRUNED]).any()


@pytest.mark.parametrize("dense", [False, True])
def test_heads_become_what_the_map_makes_of_them_in_numpy_and_torch(dense: bool) -> None:
    mix, heads = make_mix(dense=dense), random(2, 7, COLUMNS)
    wanted = heads @ matrix(mix).T
    np.testing.assert_allclose(mix.apply_to_heads(heads), wanted, atol=1e-14)
    np.testing.assert_allclose(mix.apply_to_heads(torch.from_numpy(heads)).numpy(), wanted, atol=1e-14)
    in_float32 = mix.apply_to_heads(torch.from_numpy(heads).float())
    assert in_float32.dtype == torch.float32
    np.testing.assert_allclose(in_float32.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_folded_into_the_weight_and_hooked_before_it_are_the_same(dense: bool) -> None:
    mix, weight, heads = make_mix(dense=dense), random(11, COLUMNS).astype(np.float32), random(30, COLUMNS)
    folded = mix.apply_to_rows(weight).astype(np.float64)
    np.testing.assert_allclose(heads @ folded.T, mix.apply_to_heads(heads) @ weight.T.astype(np.float64), atol=1e-5)


def test_the_last_bits_do_not_depend_on_how_many_rows_are_asked_for() -> None:
    mix, rows = make_mix(dense=True), random(5 * ROW_BLOCK + 3, COLUMNS).astype(np.float32)
    whole = mix.apply_to_rows(rows)
    for step in (ROW_BLOCK, 2 * ROW_BLOCK, 4 * ROW_BLOCK):
        parts = [mix.apply_to_rows(rows[first : first + step]) for first in range(0, len(rows), step)]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_values_are_mixed_head_by_head_and_those_of_other_heads_stay_bit_for_bit() -> None:
    values = np.eye(NUM_HEADS)
    values[[0, 3]] = 0.0
    values[2] = [0.25, 0, 0.75, 0, 0]
    mix = HeadMix(HEAD_DIM, (0, 3), np.ones(COLUMNS, np.float32), values=values)
    rows = random(COLUMNS, 4).astype(np.float32)
    rows[3, 0] = -0.0
    mixed = mix.apply_to_values(rows)
    assert mix.mixed_values == (2,)
    np.testing.assert_allclose(mixed[6:9], 0.25 * rows[0:3].astype(float) + 0.75 * rows[6:9].astype(float), atol=1e-15)
    others = [row for row in range(COLUMNS) if row not in (6, 7, 8)]
    assert mixed[others].astype(np.float32).tobytes() == rows[others].tobytes()
    bias = mix.apply_to_values(rows[:, 0])
    np.testing.assert_array_equal(bias, mixed[:, 0])


def test_a_full_disk_is_told_where_a_map_is_kept(tmp_path: Path) -> None:
    mix = HeadMix(HEAD_DIM, (0, 3), np.ones(COLUMNS, np.float32), random(6, 9))
    kept = keep(mix, 4, tmp_path).transfer
    assert mix.transfer is not None and kept is not None
    np.testing.assert_array_equal(kept, mix.transfer)
    (tmp_path / "transfer-00005").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        keep(mix, 5, tmp_path)
