"""Everything that exists once for both engines. Imports neither mlx nor torch."""
