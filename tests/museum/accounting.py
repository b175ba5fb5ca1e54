"""Scores that were wrong around an honest model: planted scorers, window plans and byte counts.

Each is small and does one thing wrong, so that a test can say which check must catch it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared.engine.protocol import Scorer, Stepper
from shared.engine.window_stepper import WindowStepper
from shared.scoring.windows import Window
from shared.spec import VocabularySpec
from tests.museum.fake_stream import FakeStream


class WrappedScorer:
    """A scorer that changes the log-probabilities [B, T, V] of another one; honest in all else."""

    def __init__(self, inner: Scorer) -> None:
        self.inner, self.spec = inner, inner.spec

    def score(self, x: np.ndarray) -> np.ndarray:
        return -np.take_along_axis(self.log_probs(x), x[..., None].astype(np.int64), axis=-1)[..., 0]

    def log_probs(self, x: np.ndarray) -> np.ndarray:
        return self.adjust(self.inner.log_probs(x), x)

    def stepper(self, rows: int) -> Stepper:
        return WindowStepper(self, rows)

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        """What the wrapper makes of them; nothing, unless a planted bug says otherwise."""
        return log_probs


class CacheBonus(WrappedScorer):
    """An n-gram cache whose bonus is not paid for: every symbol seen before becomes likelier, none less."""

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        one_hot = x[..., None] == np.arange(self.spec.vocabulary.size)
        seen = np.cumsum(one_hot, axis=1) - one_hot > 0
        return log_probs + 0.5 * seen


class TargetGate(WrappedScorer):
    """A gate that reads the target: distributions are sharpened where the next symbol is odd."""

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        return normalised(np.where(x[..., None] % 2 == 1, 1.5, 1.0) * log_probs)


class WholeWindowBias(WrappedScorer):
    """A bias fitted to the whole window before it is scored (self-prediction SLOT)."""

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        counts = (x[..., None] == np.arange(self.spec.vocabulary.size)).sum(axis=1, keepdims=True)
        return normalised(log_probs + 0.5 * (counts > 1))


class OtherRowsBias(WrappedScorer):
    """Rows of a batch learn from each other, though overlapping windows hold each other's future."""

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        others = np.roll(x, 1, axis=0)[..., None] == np.arange(self.spec.vocabulary.size)
        return normalised(log_probs + 0.5 * others)


class EarlierRows(WrappedScorer):
    """Rows of a batch learn from the rows above them, which is earlier text only where windows are scored in order."""

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        counts = (x[..., None] == np.arange(self.spec.vocabulary.size)).sum(axis=1, keepdims=True)
        above = np.cumsum(counts, axis=0) - counts
        return normalised(log_probs + 0.5 * np.log1p(above))


class ScoredBefore(WrappedScorer):
    """A cache of the text scored so far, by which the same text scores better the second time."""

    def __init__(self, inner: Scorer) -> None:
        super().__init__(inner)
        self.followers = np.zeros((self.spec.vocabulary.size, self.spec.vocabulary.size))

    def score(self, x: np.ndarray) -> np.ndarray:
        nats = super().score(x)
        np.add.at(self.followers, (x[:, :-1], x[:, 1:]), 1.0)
        return nats

    def adjust(self, log_probs: np.ndarray, x: np.ndarray) -> np.ndarray:
        known = np.log1p(self.followers[x[:, :-1]])
        return normalised(log_probs + 0.5 * np.pad(known, ((0, 0), (1, 0), (0, 0))))


class RoundedDown(WrappedScorer):
    """Honest distributions, but a score that is a tenth below what they say."""

    def score(self, x: np.ndarray) -> np.ndarray:
        return 0.9 * super().score(x)


class SpacesTwice(FakeStream):
    """A stream that counts the byte of every space twice, once as itself and once as a leading space."""

    def byte_counts(self, start: int, count: int) -> np.ndarray:
        space = ord(" ") + self.vocabulary.byte_offset
        return super().byte_counts(start, count) + (self.read(start, count) == space)


class WithoutDocumentStarts(FakeStream):
    """A stream whose writer forgot the document starts: documents simply follow each other."""

    def __init__(self, documents: Sequence[bytes], vocabulary: VocabularySpec | None = None) -> None:
        super().__init__(documents, vocabulary)
        kept = self.symbols != self.vocabulary.document_start
        self.symbols, self.ids, self.sizes = self.symbols[kept], self.ids[kept], self.sizes[kept]
        self.num_symbols = len(self.symbols)


def plan_with_double_tail(num_symbols: int, seq_len: int, stride: int) -> list[Window]:
    """Windows start at every multiple of the stride, and a partial one counts its last `stride` symbols too."""
    windows = []
    for start in range(0, num_symbols, stride):
        stop = min(start + seq_len, num_symbols)
        windows.append(Window(start, start if start == 0 else max(start, stop - stride), stop))
    return windows


def plan_without_tail(num_symbols: int, seq_len: int, stride: int) -> list[Window]:
    """Only whole windows: what does not fill one is dropped."""
    whole = range(0, num_symbols - seq_len + 1, stride)
    return [Window(start, start if start == 0 else start + seq_len - stride, start + seq_len) for start in whole]


def normalised(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities [..., V] of unnormalised ones."""
    shifted = scores - scores.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
