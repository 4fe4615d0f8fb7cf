"""Calibration: runs data through the language model, one decoder layer in memory at a time, and measures it."""
