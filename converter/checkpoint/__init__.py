"""A checkpoint on disk, read-only: its layout, geometry, tensors and sidecars."""

from converter.checkpoint.checkpoint import Checkpoint, Projection, StoredTensor
from converter.checkpoint.file_names import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE, SINGLE_FILE
from converter.checkpoint.geometry import Geometry
from converter.checkpoint.json_file import read_json_object
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
