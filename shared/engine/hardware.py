"""Peak speed of known GPUs: dense matrix products, as their makers' data sheets state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

TERA = 1e12

Products = Literal["bfloat16", "tf32", "float32"]


@dataclass(frozen=True)
class Peak:
    """10^12 operations per second without sparsity: bfloat16 and TF32 on tensor cores (float32 accumulation),
    float32 on ordinary ones."""

    bfloat16: float
    tf32: float
    float32: float

    def flops_per_s(self, products: Products) -> float:
        """Operations per second for one kind of matrix product."""
        return {"bfloat16": self.bfloat16, "tf32": self.tf32, "float32": self.float32}[products] * TERA


# In the order tried: the first whose words all stand in the device's name.
PEAKS: tuple[tuple[str, Peak], ...] = (
    ("B200", Peak(2250.0, 1125.0, 75.0)),
    ("GH200", Peak(989.4, 494.7, 66.9)),
    ("H200 NVL", Peak(835.5, 417.5, 60.0)),
    ("H200", Peak(989.4, 494.7, 66.9)),
    ("H100 NVL", Peak(835.5, 417.5, 60.0)),
    ("H100 PCIe", Peak(756.5, 378.0, 51.2)),
    ("H100", Peak(989.4, 494.7, 66.9)),
    ("A100", Peak(312.0, 156.0, 19.5)),
    ("A40", Peak(149.7, 74.8, 37.4)),
    ("A10", Peak(125.0, 62.5, 31.2)),
    ("L40S", Peak(362.0, 183.0, 91.6)),
    ("L40", Peak(181.0, 90.5, 90.5)),
    ("L4", Peak(121.0, 60.0, 30.3)),
    ("RTX 5090", Peak(209.5, 104.8, 104.8)),
    ("RTX 4090", Peak(165.2, 82.6, 82.6)),
    ("RTX 3090", Peak(71.0, 35.6, 35.6)),
)


def find_peak(device_name: str) -> tuple[str, Peak] | None:
    """(name in the table, peak) of a device by its full name, None for one that is not in the table.

    An H100 with neither NVL nor PCIe in its name is the SXM module, as its driver calls it "H100 80GB HBM3".
    """
    for name, peak in PEAKS:
        if all(re.search(rf"\b{re.escape(word)}\b", device_name, re.IGNORECASE) for word in name.split()):
            return name, peak
    return None
