"""Which document each trunk position belongs to, decided from what it has read."""

from __future__ import annotations

from shared.ops import Array, Ops
from shared.spec import Spec


def position_documents(ops: Ops, spec: Spec, x: Array) -> Array | None:
    """Number of the document of every trunk position, int32 [B, N] for symbols x [B, T]; None where nothing asks.

    Position i has read patches < i, and its number counts the document starts in them: its document is the one
    that patch i - 1 ends in. It cannot know of a start in patch i, the one to be predicted. Numbers never fall, and
    they rise where the input patch holds a start.
    """
    start = spec.vocabulary.document_start
    if start is None or not (spec.model.attention.document_mask or spec.model.smear_gate != "none"):
        return None
    batch, time = x.shape
    patch_size = spec.model.patch_size
    counts = ops.running_count(x, start).reshape((batch, time // patch_size, patch_size))[:, :, patch_size - 1]
    return ops.concatenate([0 * counts[:, :1], counts[:, :-1]], axis=1)
