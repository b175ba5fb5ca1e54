"""What holds for every test, before either framework is imported."""

from __future__ import annotations

import os

from tests.processes import start_with_default_signals

# Tests compare with exact products, whatever the shell asks of MLX.
os.environ["MLX_ENABLE_TF32"] = "0"

start_with_default_signals()
