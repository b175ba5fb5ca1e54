"""`python -m cuda_train SPEC ...` is `bytetwin train SPEC --engine torch ...`."""

import sys

from shared.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:], "--engine", "torch"]))
