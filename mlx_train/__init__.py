"""The MLX engine: laptop iterations on a Mac, and on Linux with an NVIDIA GPU or none.

Importing it prepares the process for MLX, which has to happen before `mlx.core` is imported.
"""

import os

from mlx_train.blas import is_cpu_build, load_openblas
from mlx_train.float32_products import start_exact

# MLX orders a graph breadth first up to this width, then depth first. Depth first, a CPU would finish the
# work of one stream before it starts that of the next; wide enough, all streams run side by side. A GPU has
# one stream, and breadth costs it memory.
if is_cpu_build() or os.environ.get("BYTETWIN_DEVICE") == "cpu":
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "10000")

start_exact()
load_openblas()
