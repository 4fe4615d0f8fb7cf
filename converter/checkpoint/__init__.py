"""A checkpoint on disk, read-only: its layout, geometry, tensors and sidecars."""

from .checkpoint import Checkpoint, Repository
from .families import Family
from .files import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, SINGLE_FILE, read_json_object
from .geometry import Geometry
from .tensors import Projection, StoredTensor

__all__ = [
    "CONFIG_FILE",
    "INDEX_FILE",
    "MANIFEST_FILE",
    "SINGLE_FILE",
    "Checkpoint",
    "Family",
    "Geometry",
    "Projection",
    "Repository",
    "StoredTensor",
    "read_json_object",
]
