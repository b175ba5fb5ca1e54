"""Numbers that look random and are a function of a counter: the same in all implementations, and after a resume."""

from __future__ import annotations

from typing import Any

MASK = 0xFFFF_FFFF
# Odd, so that multiplication by it is one to one modulo 2^32.
INDEX_FACTOR, COUNTER_FACTOR = 0x9E37_79B1, 0x85EB_CA77
FIRST_FACTOR, SECOND_FACTOR = 0x7FEB_352D, 0x846C_A68B


def mixed(index: Any, counter: Any, salt: int) -> Any:
    """32 well mixed bits for each element of `index`, in its own kind of integer array.

    With h = index * INDEX_FACTOR + counter * COUNTER_FACTOR + salt modulo 2^32: h is xored with h >> 16, multiplied,
    xored with h >> 15, multiplied and xored with h >> 16. Index, counter and result are integers of 32 bits without a
    sign, or such numbers in 64 bits: products may wrap around, their lower half is the same.
    """
    h = (index * INDEX_FACTOR + counter * COUNTER_FACTOR + salt) & MASK
    h = ((h ^ (h >> 16)) * FIRST_FACTOR) & MASK
    h = ((h ^ (h >> 15)) * SECOND_FACTOR) & MASK
    return h ^ (h >> 16)
