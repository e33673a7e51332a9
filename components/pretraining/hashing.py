"""Random numbers by counter: each is a hash of what it is for, so that no order of drawing and no world size matters.

The mixer is that of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), chained
over the words. 64 bits, vectorised in numpy, about 10 ns a number. Not for secrets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UintArray = npt.NDArray[np.uint64]
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def uint64_of(value: int) -> UintArray:
    """One number as an array of one word (arrays wrap around in silence, numpy scalars warn)."""
    return np.asarray([value & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)


def mix(*words: UintArray) -> UintArray:
    """A 64-bit hash of the words, broadcast against one another."""
    state = np.zeros(1, dtype=np.uint64)
    for word in words:
        state = (state ^ word) + _GAMMA
        state = (state ^ (state >> np.uint64(30))) * _FIRST
        state = (state ^ (state >> np.uint64(27))) * _SECOND
        state = state ^ (state >> np.uint64(31))
    return state


def uniform(*words: UintArray) -> npt.NDArray[np.float64]:
    """A number in [0, 1) from the words, of 53 bits."""
    return (mix(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53
