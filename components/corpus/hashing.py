"""Hashes of numbers and of runs of them, all at once: words from characters, n-grams from words.

A polynomial hash modulo 2^64 with prefix sums, so that the hash of any run costs two look-ups whatever its length. Two
different runs share a hash with a probability near 2^-64; who writes a text could force a collision, which would only
make the text look more repetitive than it is. 8 bytes a value held, 32 while it is made.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

UInts = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_BLOCK = 1 << 16


def mix(values: npt.NDArray[np.integer]) -> UInts:
    """Each value as 64 well-mixed bits (the finisher of splitmix64, Steele et al. 2014, figure 17)."""
    mixed = values.astype(np.uint64)
    mixed += np.uint64(_BASE)
    for shift, factor in zip((30, 27), _MIX, strict=True):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@cache
def _powers(base: int) -> tuple[UInts, UInts]:
    """Powers 0 ... _BLOCK - 1 of `base`, and of its _BLOCK-th power."""
    low = np.full(_BLOCK, base, np.uint64)
    low[0] = 1
    high = np.full(_BLOCK, pow(base, _BLOCK, 1 << 64), np.uint64)
    high[0] = 1
    return np.multiply.accumulate(low), np.multiply.accumulate(high)


def _power(base: int, exponents: Ints) -> UInts:
    low, high = _powers(base)
    power: UInts = low[exponents & (_BLOCK - 1)]
    if len(exponents) and int(exponents.max()) >= _BLOCK:
        power *= high[exponents >> 16]
    return power


class RunHashes:
    """Hashes of runs of `values`, (N,), of which N may be up to 2^32."""

    def __init__(self, values: npt.NDArray[np.integer]) -> None:
        self._prefix = np.zeros(len(values) + 1, np.uint64)
        low, _ = _powers(_BASE)
        for start in range(0, len(values), _BLOCK):
            terms = mix(values[start : start + _BLOCK])
            terms *= low[: len(terms)]
            terms *= np.uint64(pow(_BASE, start, 1 << 64))
            np.cumsum(terms, out=terms)
            terms += self._prefix[start]
            self._prefix[start + 1 : start + 1 + len(terms)] = terms

    def of(self, starts: Ints, ends: Ints) -> UInts:
        """The hash of each run [start, end), (K,); it does not depend on where the run stands, but on its length."""
        runs: UInts = self._prefix[ends]
        runs -= self._prefix[starts]
        runs *= _power(_INVERSE, starts)
        return mix(runs + (ends - starts).astype(np.uint64))
