"""Importing this makes torch import what compiling a model needs, and leaves no graph behind."""

import torch

from tests import sweep_standin

# Processes are forked from the one that imports this, and threads do not survive that.
torch.set_num_threads(1)
sweep_standin.compiled_graphs(sweep_standin.variant(0))
torch._dynamo.reset()
