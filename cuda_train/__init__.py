"""The torch engine: one GPU, or a CPU for parity checks and tests."""
