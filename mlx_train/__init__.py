"""The MLX engine: laptop iterations on a Mac, and on Linux without a GPU."""

from mlx_train.blas import load_openblas

load_openblas()
