"""A module per kind of mask and scores file. ``mask.files`` is the one door to them."""
