"""Between the floating-point dtypes that weights are stored in and float32.

numpy has no bfloat16, so its 16 bits are widened and rounded here: a bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})

# The distance from 1.0 to the next larger number of the dtype.
EPSILON: Mapping[str, float] = MappingProxyType({"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7})

# The smallest magnitude that rounds to infinity: half a place beyond the dtype's largest number.
OVERFLOW: Mapping[str, float] = MappingProxyType(
    {"F32": 2.0**128 - 2.0**103, "F16": 65520.0, "BF16": 2.0**128 - 2.0**119}
)

# The exponent of the smallest normal number: below it, numbers keep its distance.
_MIN_EXPONENT: Mapping[str, int] = MappingProxyType({"F32": -126, "F16": -14, "BF16": -126})


def decode(data: bytes, dtype: str) -> Float32Array:
    """The stored values as a flat float32 array; exact for every dtype of :data:`ITEM_BYTES`."""
    if dtype == "F32":
        return np.frombuffer(data, dtype="<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, dtype="<f2").astype(np.float32)
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def encode(values: Float32Array | Float64Array, dtype: str) -> bytes:
    """*values* rounded once, to nearest, ties to even; one out of the dtype's range becomes infinite. No NaN."""
    if dtype == "F32":
        with np.errstate(over="ignore"):
            return values.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    bits = _float32_bits(values)
    # Add just under half of the last kept place, and one more where that place is odd: ties go to even.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def unit_in_last_place(values: Float64Array, dtype: str) -> Float64Array:
    """The distance from each value to the next larger magnitude that *dtype* can hold."""
    _, exponents = np.frexp(values)  # values = mantissa * 2 ** exponent, mantissa from 0.5 to 1
    exponents = np.where(values == 0, _MIN_EXPONENT[dtype], np.maximum(exponents - 1, _MIN_EXPONENT[dtype]))
    return np.ldexp(EPSILON[dtype], exponents)


def _float32_bits(values: Float32Array | Float64Array) -> npt.NDArray[np.uint32]:
    """The bit patterns of *values* as float32, which rounding to fewer bits turns into what the values round to.

    A float64 between two float32 becomes the one whose last bit is 1 ("round to odd"): it lies on the same side of
    every shorter number and of every tie between two of those.
    """
    with np.errstate(over="ignore"):
        nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    if values.dtype == np.float32:
        return bits
    step = np.where(np.abs(nearest) > np.abs(values), np.uint32(0xFFFFFFFF), np.uint32(1))  # towards the value
    return np.where((nearest != values) & (bits & 1 == 0), bits + step, bits)
