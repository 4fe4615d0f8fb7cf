"""The compensations by kind."""

from s4convert.compensation import MODES

# Those that are a map on a layer's heads, whatever the rest of the model is.
MAPS = tuple(mode for mode, row in MODES.items() if not row.trained)
