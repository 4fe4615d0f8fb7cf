"""Stored bytes to float32 and back are what torch makes of them, for every number there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from s4convert.checkpoint.dtypes import EPSILON, ITEM_BYTES, decode, encode, unit_in_last_place

# The smallest value that rounds to infinity.
OVERFLOW = {"F32": 2.0**128 - 2.0**103, "F16": 65520.0, "BF16": 2.0**128 - 2.0**119}

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
HALVES = ["F16", "BF16"]
EVERY_PATTERN = np.arange(1 << 16, dtype="<u2")


def torch_values(patterns: np.ndarray, dtype: str) -> np.ndarray:
    """The float32 values of 16-bit *patterns*."""
    return torch.from_numpy(patterns.view(np.int16)).view(TORCH[dtype]).to(torch.float32).numpy()


def torch_bytes(values: np.ndarray, dtype: str) -> bytes:
    """float32 *values* rounded to the stored dtype."""
    stored = torch.from_numpy(values.copy()).to(TORCH[dtype])
    return stored.view(torch.int32 if dtype == "F32" else torch.int16).numpy().tobytes()


def finite_patterns(dtype: str) -> np.ndarray:
    return EVERY_PATTERN[np.isfinite(torch_values(EVERY_PATTERN, dtype))]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_finite_pattern_decodes_to_its_exact_value(dtype: str) -> None:
    patterns = finite_patterns(dtype)
    assert len(patterns) == {"F16": 63488, "BF16": 65280}[dtype]
    assert decode(patterns.tobytes(), dtype).tobytes() == torch_values(patterns, dtype).tobytes()


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_not_finite_decodes_to_what_is_not_finite(dtype: str) -> None:
    patterns = np.setdiff1d(EVERY_PATTERN, finite_patterns(dtype))
    np.testing.assert_array_equal(decode(patterns.tobytes(), dtype), torch_values(patterns, dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_finite_pattern_survives_the_way_there_and_back(dtype: str) -> None:
    patterns = finite_patterns(dtype)
    assert encode(decode(patterns.tobytes(), dtype), dtype) == patterns.tobytes()


@pytest.mark.parametrize("dtype", HALVES)
def test_the_middle_of_two_neighbours_goes_to_the_even_one_and_beside_it_to_the_nearer(dtype: str) -> None:
    positive = np.sort(np.abs(torch_values(finite_patterns(dtype), dtype)))
    middles = ((positive[:-1].astype(np.float64) + positive[1:]) / 2).astype(np.float32)
    middles = np.concatenate([middles, [np.float32(OVERFLOW[dtype])]])
    around = np.concatenate([middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))])
    values = np.concatenate([around, -around])
    assert encode(values, dtype) == torch_bytes(values, dtype)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1), st.sampled_from(sorted(ITEM_BYTES)))
@example([0.0, -0.0, 2.0**-149, -(2.0**-149), 65519.996, 65520.0, 3.4028234663852886e38], "F16")
@example([0.0, -0.0, 2.0**-149, -(2.0**-149), 65519.996, 65520.0, 3.4028234663852886e38], "BF16")
def test_any_number_is_encoded_as_torch_rounds_it(numbers: list[float], dtype: str) -> None:
    values = np.array(numbers, dtype=np.float32)
    assert encode(values, dtype) == torch_bytes(values, dtype)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_f32_is_neither_widened_nor_rounded(patterns: list[int]) -> None:
    data = np.array(patterns, dtype="<u4").tobytes()
    assert decode(data, "F32").tobytes() == data
    assert encode(decode(data, "F32"), "F32") == data


@pytest.mark.parametrize("dtype", HALVES)
def test_the_overflow_bound_is_the_first_number_that_becomes_infinite(dtype: str) -> None:
    bound = np.float32(OVERFLOW[dtype])
    below = np.nextafter(bound, np.float32(0))
    encoded = decode(encode(np.array([bound, -bound, below, -below], dtype=np.float32), dtype), dtype)
    np.testing.assert_array_equal(np.isinf(encoded), [True, True, False, False])


@pytest.mark.parametrize("dtype", sorted(ITEM_BYTES))
def test_sizes_and_precision_are_those_of_torch(dtype: str) -> None:
    assert ITEM_BYTES[dtype] == TORCH[dtype].itemsize
    assert EPSILON[dtype] == torch.finfo(TORCH[dtype]).eps
    assert len(encode(np.zeros(3, dtype=np.float32), dtype)) == 3 * ITEM_BYTES[dtype]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.floats(allow_nan=False), min_size=1), st.sampled_from(sorted(ITEM_BYTES)))
@example([1 + 2.0**-11, 1 + 2.0**-11 + 2.0**-50, 1 + 2.0**-11 - 2.0**-50, 2.0**-25, 2.0**-25 + 2.0**-70], "F16")
@example([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-50, 1 + 2.0**-8 - 2.0**-50, 2.0**-134, 2.0**-134 + 2.0**-180], "BF16")
@example([1 + 3 * 2.0**-8 - 2.0**-50, -(1 + 2.0**-8 + 2.0**-40), 2.0**-300, -(2.0**-300), 2.0**128, -1e300], "BF16")
def test_float64_is_rounded_once(numbers: list[float], dtype: str) -> None:
    """To the nearest of the two neighbours that the dtype has, not by way of float32; the even one of a tie."""
    values = np.array(numbers)
    found = decode(encode(values, dtype), dtype).astype(np.float64)
    overflows = np.abs(values) >= OVERFLOW[dtype]
    assert (np.isinf(found) == overflows).all()
    assert (np.signbit(found) == np.signbit(values)).all()
    unit = unit_in_last_place(values, dtype)
    steps = np.divide(values, unit, where=~overflows, out=np.zeros_like(values))  # exact: unit is a power of two
    assert (np.rint(steps) == np.divide(found, unit, where=~overflows, out=np.zeros_like(values))).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_the_unit_in_the_last_place_is_the_distance_to_the_next_number(dtype: str) -> None:
    positive = np.sort(np.abs(torch_values(finite_patterns(dtype), dtype))).astype(np.float64)
    positive = np.unique(positive)
    assert (unit_in_last_place(positive[:-1], dtype) == np.diff(positive)).all()
    assert (unit_in_last_place(-positive, dtype) == unit_in_last_place(positive, dtype)).all()
