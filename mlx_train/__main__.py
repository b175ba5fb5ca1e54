"""`python -m mlx_train SPEC ...` is `bytetwin train SPEC --engine mlx ...`, also as one of mlx.launch's processes."""

import sys

from shared.cli.start import ending_in_one_line

with ending_in_one_line():
    from shared.engine.ranks import is_launched, stop_with_parent

    if is_launched():
        # Before MLX is imported: the launcher may be killed meanwhile.
        stop_with_parent()

    from shared.cli.main import run_process

if __name__ == "__main__":
    sys.exit(run_process(["train", *sys.argv[1:], "--engine", "mlx"]))
