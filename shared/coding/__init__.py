"""Lossless coding of text with a model: the score as the size of a file (docs/coding.md)."""
