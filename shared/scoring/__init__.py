"""Bits per byte of a text, and whether the score is honest."""
