"""torch.compile, without its habit of running a function uncompiled once it has compiled it too often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from shared.errors import RunError


def compiled(function: Callable, what: str) -> Callable:
    """Compile a function. `what` names it in an error.

    torch keeps a few graphs (torch._dynamo.config.recompile_limit) for the code of a function, whichever model calls
    it, and by default runs every further one uncompiled with a line in the log: half as fast, or slower. Here the call
    raises RunError instead.
    """
    # torch imports its compiler here, and not before: that takes longer than the rest of torch.
    compiles = torch.compile(function)
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
