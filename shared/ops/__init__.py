"""The seam below the model: the Ops protocol, its NumPy oracle, shapes without values, which count operations, and a
base for wrappers of another Ops."""

from shared.ops.numpy_ops import NumpyOps
from shared.ops.protocol import Array, Ops
from shared.ops.shape_ops import Shaped, ShapeOps
from shared.ops.stepping_ops import SteppingOps
from shared.ops.wrapped_ops import WrappedOps

__all__ = ["Array", "NumpyOps", "Ops", "ShapeOps", "Shaped", "SteppingOps", "WrappedOps"]
