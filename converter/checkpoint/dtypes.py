"""Between the floating-point dtypes that weights are stored in and float32.

numpy has no bfloat16, so its 16 bits are widened and rounded here: a bfloat16 is the upper half of a float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]

ITEM_BYTES: Mapping[str, int] = MappingProxyType({"F32": 4, "F16": 2, "BF16": 2})

# The distance from 1.0 to the next larger number of the dtype.
EPSILON: Mapping[str, float] = MappingProxyType({"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7})

# The smallest magnitude that rounds to infinity: half a place beyond the dtype's largest number.
OVERFLOW: Mapping[str, float] = MappingProxyType({"F32": float("inf"), "F16": 65520.0, "BF16": 2.0**128 - 2.0**119})


def decode(data: bytes, dtype: str) -> Float32Array:
    """The stored values as a flat float32 array; exact for every dtype of :data:`ITEM_BYTES`."""
    if dtype == "F32":
        return np.frombuffer(data, dtype="<f4").astype(np.float32)
    if dtype == "F16":
        return np.frombuffer(data, dtype="<f2").astype(np.float32)
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def encode(values: Float32Array, dtype: str) -> bytes:
    """*values* rounded to nearest, ties to even; one out of the dtype's range becomes infinite. No NaN."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return values.astype("<f2").tobytes()
    bits = values.astype(np.float32).view(np.uint32)
    # Add just under half of the last kept place, and one more where that place is odd: ties go to even.
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()
