"""Held-out documents that are trained on: planted in a training text."""

from __future__ import annotations

from collections.abc import Sequence


def heldout_in_training(training: Sequence[bytes], heldout: Sequence[bytes]) -> list[bytes]:
    """A crawl that has everything twice, once on either side."""
    return [*training, *heldout]


def heldout_with_other_white_space(training: Sequence[bytes], heldout: Sequence[bytes]) -> list[bytes]:
    """The same, laid out otherwise and in capitals, so that no document and no line is equal to another."""
    copies = (document.upper().replace(b" ", b"\n\t").replace(b".", b". ") for document in heldout)
    return [*training, *copies]


def a_twentieth_of_heldout(training: Sequence[bytes], heldout: Sequence[bytes]) -> list[bytes]:
    """A few files imported on both sides: every twentieth held-out document."""
    return [*training, *heldout[::20]]


def default_number_of_validation_documents(training: Sequence[bytes], heldout: Sequence[bytes]) -> list[bytes]:
    """A script that prepares training text and takes 10,000 documents for validation unless told otherwise, where the
    validation split has 50,000: the other four fifths are trained on."""
    return [*heldout[len(heldout) // 5 :], *training]
