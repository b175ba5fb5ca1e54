"""`python -m mlx_train SPEC ...` is `bytetwin train SPEC --engine mlx ...`."""

import sys

from shared.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:], "--engine", "mlx"]))
