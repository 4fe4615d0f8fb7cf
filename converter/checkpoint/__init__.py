"""A checkpoint on disk, read-only: its layout, geometry, tensors and sidecars."""

from converter.checkpoint.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    MANIFEST_FILE,
    SINGLE_FILE,
    Checkpoint,
    Projection,
    StoredTensor,
    read_json_object,
)
from converter.checkpoint.geometry import Geometry
from converter.checkpoint.layouts import Family

__all__ = [
    "CONFIG_FILE",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "SINGLE_FILE",
    "Checkpoint",
    "Family",
    "Geometry",
    "Projection",
    "StoredTensor",
    "read_json_object",
]
