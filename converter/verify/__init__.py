"""Checks that a converted checkpoint is what the mask asked for: byte by byte, and by its hidden states."""
