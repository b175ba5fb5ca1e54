"""What holds for every test, before either framework is imported."""

from __future__ import annotations

import os

# Tests compare with exact products, whatever the shell asks of MLX.
os.environ["MLX_ENABLE_TF32"] = "0"
