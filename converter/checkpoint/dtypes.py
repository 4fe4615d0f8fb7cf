"""Converts stored weights (float32, float16, bfloat16) to float32 and back.

numpy has no bfloat16; it is the upper 16 bits of a float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
_NUMPY_DTYPES = {"F32": "<f4", "F16": "<f2"}

# The distance from 1.0 to the next larger number of the dtype.
EPSILON: Mapping[str, float] = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}

# The bits that are all on in infinity and NaN, and in nothing else.
_EXPONENT_BITS = {"F32": np.uint32(0x7F800000), "F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}


# The exponent of the smallest normal number; smaller (subnormal) numbers have its spacing.
_MIN_EXPONENT = {"F32": -126, "F16": -14, "BF16": -126}


def decode(data: bytes | bytearray | memoryview, dtype: str) -> Float32Array:
    """The stored values as a flat float32 array; exact for every dtype of :data:`ITEM_BYTES`."""
    if dtype in _NUMPY_DTYPES:
        return np.frombuffer(data, _NUMPY_DTYPES[dtype]).astype(np.float32)
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def encode(values: Float32Array | Float64Array, dtype: str) -> bytes:
    """*values*, without NaN, rounded once to nearest, ties to even; beyond the range of *dtype* to infinity."""
    if dtype in _NUMPY_DTYPES:
        with np.errstate(over="ignore"):
            return values.astype(_NUMPY_DTYPES[dtype]).tobytes()
    bits = _float32_bits(values)
    # Add just less than half of the last kept bit, and one more where that bit is 1: ties go to even.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def all_finite(data: bytes | bytearray | memoryview, dtype: str) -> bool:
    """Whether none of the stored values is infinite or NaN."""
    exponents = _EXPONENT_BITS[dtype]
    bits = np.frombuffer(data, f"<u{ITEM_BYTES[dtype]}")
    return not bits.size or bool((bits & exponents).max() < exponents)


def every_value(dtype: str) -> Float32Array:
    """The value of every bit pattern of a *dtype* of 16 bits, those of infinity and NaN among them [65536]."""
    return decode(np.arange(1 << 16, dtype="<u2").tobytes(), dtype)


def unit_in_last_place(values: Float64Array, dtype: str) -> Float64Array:
    """The distance from each value to the next larger magnitude that *dtype* can hold."""
    _, exponents = np.frexp(values)  # values = mantissa * 2 ** exponent, mantissa from 0.5 to 1
    exponents = np.where(values == 0, _MIN_EXPONENT[dtype], np.maximum(exponents - 1, _MIN_EXPONENT[dtype]))
    return np.ldexp(EPSILON[dtype], exponents)


def _float32_bits(values: Float32Array | Float64Array) -> npt.NDArray[np.uint32]:
    """The bit patterns of *values* in float32, rounded to odd, so that rounding them again gives no double rounding.

    Of the two float32 around a float64, it takes the one whose last bit is 1.
    """
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    if values.dtype == np.float32:
        return bits
    step = np.where(np.abs(nearest) > np.abs(values), np.uint32(0xFFFFFFFF), np.uint32(1))  # towards the value
    return np.where((nearest != values) & (bits & 1 == 0), bits + step, bits)
