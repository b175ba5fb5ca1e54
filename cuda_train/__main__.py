"""`python -m cuda_train SPEC ...` is `bytetwin train SPEC --engine torch ...`, also as one of torchrun's processes."""

import os
import sys

from shared.cli.start import ending_in_one_line

with ending_in_one_line():
    from shared.engine.ranks import is_launched, stop_with_parent

    if is_launched():
        # Before torch is imported, which takes seconds in which the launcher may be killed.
        stop_with_parent()

    from cuda_train import distributed
    from shared.cli.main import run_process

if __name__ == "__main__":
    status = run_process(["train", *sys.argv[1:], "--engine", "torch"])
    if status == 0:
        distributed.disconnect()
    # Taking a process group apart whose other ranks are gone can hang or print a trace.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
