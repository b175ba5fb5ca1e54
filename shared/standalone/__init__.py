"""The programs that a self-contained script runs (shared.script): `bytetwin train` and `bytetwin score` at their core."""
