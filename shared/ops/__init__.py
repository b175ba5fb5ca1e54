"""The seam below the model: the Ops protocol, its NumPy oracle, and shapes without values, which count operations."""

from shared.ops.numpy_ops import NumpyOps
from shared.ops.protocol import Array, Ops
from shared.ops.shape_ops import Shaped, ShapeOps

__all__ = ["Array", "NumpyOps", "Ops", "ShapeOps", "Shaped"]
