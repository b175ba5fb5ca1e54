"""torch.compile, without its habit of running a function uncompiled once it has compiled it too often."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cuda_train.device import on_gpu
from shared.errors import RunError

# Where torch looks for what an earlier process compiled, and Triton and flash-attn-4 for their kernels.
CACHE_VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": "torch",
    "TRITON_CACHE_DIR": "triton",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash-attention",
}
# flash-attn-4 keeps nothing unless it is told to.
KEEPS_VARIABLE = "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED"
# With no more compilers at a time than this, one C++ file for a graph is ready sooner than one for each of its kernels.
FEW_COMPILERS = 4


def keep_compiled(folder: Path) -> None:
    """Keep what is compiled in a folder, for later processes; where a user has named another, that one stays."""
    for variable, name in CACHE_VARIABLES.items():
        os.environ.setdefault(variable, str((folder / name).absolute()))
    os.environ.setdefault(KEEPS_VARIABLE, "1")


def compiled(function: Callable, what: str, *, alike: bool = False) -> Callable:
    """Compile a function. `what` names it in an error.

    With `alike` every process that compiles it for GPUs of one kind computes the same bits. Otherwise torch's compiler
    times forms of a sum, and what is fastest need not be the same form in every process.

    torch keeps a few graphs (torch._dynamo.config.recompile_limit) for the code of a function, whichever model calls
    it, and by default runs every further one uncompiled with a line in the log: half as fast, or slower. Here the call
    raises RunError instead.
    """
    # torch imports its compiler here, and not before: that takes longer than the rest of torch.
    compiles = torch.compile(function, options=_options(alike))
    from torch._dynamo.exc import FailOnRecompileLimitHit

    def call(*args: Any) -> Any:
        # At each call, because torch's settings belong to a thread.
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            try:
                return compiles(*args)
            except FailOnRecompileLimitHit:
                raise RunError(
                    f"torch has compiled {what} for as many models and shapes as one process may, and would run the "
                    "next one uncompiled: use a process for each model, as `bytetwin sweep` does, "
                    "or --set training.compile=false"
                ) from None

    return call


def _options(alike: bool) -> dict[str, Any]:
    """torch's options. Each C++ file costs a second of headers; a step of `tiny` has 111 kernels in three graphs."""
    from torch._inductor import config

    options = {"deterministic": True} if alike else {}
    if sys.platform == "linux" and not on_gpu() and config.decide_compile_threads() <= FEW_COMPILERS:
        options["cpp_wrapper"] = True
    return options
