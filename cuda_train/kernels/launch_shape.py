"""How many programs a kernel that adds up over all rows is launched with."""

from __future__ import annotations

from functools import lru_cache

import torch


@lru_cache(maxsize=8)
def num_programs(device: torch.device, per_processor: int) -> int:
    """Programs of such a kernel, enough of them on each multiprocessor to fill the memory bus. The sum is made in the
    same order each time, because the number depends on the device alone; two where Triton's interpreter stands in."""
    if device.type != "cuda":
        return 2
    return per_processor * int(torch.cuda.get_device_properties(device).multi_processor_count)
