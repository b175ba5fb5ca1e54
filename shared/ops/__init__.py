"""The seam below the model: the Ops protocol and its NumPy oracle."""

from shared.ops.numpy_ops import NumpyOps
from shared.ops.protocol import Array, Ops

__all__ = ["Array", "NumpyOps", "Ops"]
