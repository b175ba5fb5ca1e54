"""Corpora, shards, datasets and the loader. Imports neither mlx nor torch."""
