"""The torch engine: one GPU, or a CPU for parity checks and tests."""

import logging

# On a Mac torch's launcher says when it is imported that it cannot redirect output. Nothing is redirected here.
logging.getLogger("torch.distributed.elastic.multiprocessing.redirects").setLevel(logging.ERROR)
