"""One dial to a spec: from bytes, minutes and a device to the shape that is expected to score best."""

from shared.plan.choose import Plan, make_plan
from shared.plan.speed import DEVICES, Wish

__all__ = ["DEVICES", "Plan", "Wish", "make_plan"]
