"""A range coder in integers of any size: intervals of [0, 2^bits) to bytes and back, the same on every machine.

The state is an interval of 96 bits (Martin 1979). At least 64 of them are in use, so an interval costs its share of
2^bits to within 2^-32 for bits up to 32. Words are big-endian; behind the last byte the decoder
reads zeros.
"""

from __future__ import annotations

WORD_BITS = 32
STATE_BITS = 96
LEAST_RANGE = 1 << STATE_BITS - WORD_BITS
_WORD = (1 << WORD_BITS) - 1
_BELOW = LEAST_RANGE - 1


class RangeEncoder:
    """Collects intervals; `finish` gives the bytes."""

    def __init__(self) -> None:
        self._low, self._range = 0, 1 << STATE_BITS
        # Words of 32 bits; one of 33 carries into the one before.
        self._words: list[int] = []

    def encode(self, start: int, size: int, bits: int) -> None:
        """Add the interval [start, start + size) of [0, 2^bits), size >= 1 and bits <= 32."""
        step = self._range >> bits
        self._low += step * start
        self._range = step * size
        if self._range < LEAST_RANGE:
            self._words.append(self._low >> STATE_BITS - WORD_BITS)
            self._low = (self._low & _BELOW) << WORD_BITS
            self._range <<= WORD_BITS

    def finish(self) -> bytes:
        """As few bytes as stand for the intervals, at most five fewer than their size says."""
        count = 0
        while (value := self._rounded_up(8 * count)) >= self._low + self._range:
            count += 1
        words = [*self._words, value >> STATE_BITS - WORD_BITS, value >> WORD_BITS & _WORD, value & _WORD]
        carry = 0
        for index in reversed(range(len(words))):
            carry, words[index] = divmod(words[index] + carry, 1 << WORD_BITS)
        assert carry == 0
        return b"".join(word.to_bytes(4, "big") for word in words)[: 4 * len(self._words) + count]

    def _rounded_up(self, bits: int) -> int:
        """The lower end of the interval, rounded up to a number of which only the first `bits` are not zero."""
        shift = STATE_BITS - bits
        return -(-self._low >> shift) << shift


class RangeDecoder:
    """Reads the intervals of an encoder in their order: `slot`, then `consume` with the interval that holds it."""

    def __init__(self, content: bytes) -> None:
        self._content = content + bytes(-len(content) % 4)
        self._next = 0
        self._range = 1 << STATE_BITS
        # Where the content lies in the interval.
        self._offset = 0
        for _ in range(STATE_BITS // WORD_BITS):
            self._offset = self._offset << WORD_BITS | self._word()

    def slot(self, bits: int) -> int:
        """A number of [0, 2^bits) that the next interval holds."""
        # Damaged content may lie behind the last slot.
        return min(self._offset // (self._range >> bits), (1 << bits) - 1)

    def consume(self, start: int, size: int, bits: int) -> None:
        """Go past the interval [start, start + size)."""
        step = self._range >> bits
        self._offset -= step * start
        self._range = step * size
        if self._range < LEAST_RANGE:
            self._offset = self._offset << WORD_BITS | self._word()
            self._range <<= WORD_BITS

    def _word(self) -> int:
        word = int.from_bytes(self._content[self._next : self._next + 4], "big")
        self._next += 4
        return word
