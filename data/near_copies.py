"""Splits the documents of an import, so that no held-out text is training text as well.

A document's side is a pseudo-random function of its folded text alone. Documents that nearly repeat each other share
one side, that of the group. Then a held-out document that mostly occurs in several training documents, or in a longer
one, moves to training.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data.sketch import Sketch, SketchBuilder

# Denser than what a dataset keeps, because short documents must be distinguished here: 27 windows of 500 bytes. The
# 16.8 million windows of an import of 270 MB and more take 1.2 GB while they are compared.
LEVEL = 4
MAX_WINDOWS = 1 << 24

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


def split_builder() -> SketchBuilder:
    """A builder that collects the documents of an import for `heldout_documents`."""
    return SketchBuilder(LEVEL, MAX_WINDOWS)


def heldout_documents(sketch: Sketch, heldout_frac: float) -> tuple[Bool, int]:
    """(whether each document is held out, [D] bool; how many documents are near-copies of others).

    A near-copy shares at least half of its windows, and half of the other's. The sides do not depend on the order of
    the documents, but for groups that hang together by a part of their members alone.
    """
    owners, counts = sketch.owners, sketch.counts.astype(np.int64)
    _, first, window = np.unique(sketch.windows, return_index=True, return_inverse=True)
    groups = _groups(owners, counts, owners[first][window])
    keys = np.full(len(counts), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(keys, groups, sketch.documents)
    held = _mixed(keys[groups]) < heldout_frac * 2.0**64
    while True:
        in_training = np.zeros(len(first), bool)
        in_training[window[~held[owners]]] = True
        known = np.bincount(owners[in_training[window]], minlength=len(counts))
        covered = held & (counts > 0) & (2 * known >= counts)
        if not covered.any():
            break
        held &= ~covered
    sizes = np.bincount(groups, minlength=len(counts))
    return held, int((sizes[groups] > 1).sum())


def _groups(owners: Int64, counts: Int64, firsts: Int64) -> Int64:
    """The first document of each one's group: [D]. `firsts` [W] is the first document that has the window of `owners`.

    Each document is compared with those that had its windows first; comparing all with all would take forever where
    many share a licence.
    """
    number = len(counts)
    elsewhere = firsts != owners
    pairs, shared = np.unique(firsts[elsewhere] * number + owners[elsewhere], return_counts=True)
    one, other = pairs // max(1, number), pairs % max(1, number)
    linked = 2 * shared >= np.maximum(counts[one], counts[other])
    return _connected(one[linked], other[linked], number)


def _connected(one: Int64, other: Int64, number: int) -> Int64:
    """The smallest index that each of [0, number) hangs together with, by links from `one` [L] to `other` [L]."""
    labels = np.arange(number)
    while True:
        lowest = np.minimum(labels[one], labels[other])
        lower = labels.copy()
        np.minimum.at(lower, one, lowest)
        np.minimum.at(lower, other, lowest)
        lower = lower[lower]
        if (lower == labels).all():
            return labels
        labels = lower


def _mixed(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Uniform numbers of keys that are not: the smallest of a group tend to be small. The finaliser of SplitMix64."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))
