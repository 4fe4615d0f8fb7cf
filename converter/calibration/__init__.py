"""Calibration: data run through the language model, one decoder layer in memory at a time, and what is measured."""
