"""Everything that exists once for both engines. Imports neither mlx nor torch."""

__version__ = "0.1.0"
