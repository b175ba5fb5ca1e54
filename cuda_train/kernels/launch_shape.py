"""How many programs a kernel that adds up over all rows is launched with."""

from __future__ import annotations

from functools import lru_cache

import torch

# Programs on a multiprocessor at the same time: enough loads in flight to fill the memory bus.
PROGRAMS_PER_PROCESSOR = 8


@lru_cache(maxsize=8)
def num_programs(device: torch.device) -> int:
    """Programs of such a kernel. The sum is made in the same order each time, because the number depends on the device
    alone; two where Triton's interpreter stands in for one."""
    if device.type != "cuda":
        return 2
    return PROGRAMS_PER_PROCESSOR * int(torch.cuda.get_device_properties(device).multi_processor_count)
