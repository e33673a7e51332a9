"""MinHash signatures and their bands (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", ch. 3).

Two texts whose sets of n-grams have the Jaccard similarity s have equal minima under one random order with probability
s. A band of r minima is equal with probability s^r, and one of b bands with 1 - (1 - s^r)^b: that is how a pair becomes
a candidate, and candidates are compared by their n-grams themselves (`jaccard`), so that a false candidate costs time
and nothing else. Bands take 8 bytes each: 168 bytes a document at a threshold of 0.8. 8 MB/s on one core with 126
minima. Kept libraries hash Python lists of strings, of which making the list alone takes as long.

Shapes: T texts, G n-grams, K minima, B bands.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from components.corpus.hashing import mix
from components.corpus.ngrams import IntArray, Ngrams, UintArray

MAX_MINIMA = 128
MIN_RECALL = 0.99
BLOCK_NGRAMS = 1 << 15
"""N-grams that are hashed at a time: they, and what is made of them, stay in the cache of a core."""


@lru_cache(maxsize=8)
def band_shape(threshold: float) -> tuple[int, int]:
    """(bands, minima of a band): the longest bands of which 128 minima give enough for a pair at `threshold` to become
    a candidate with a probability of 0.99."""
    best = (MAX_MINIMA, 1)
    for rows in range(1, MAX_MINIMA + 1):
        bands = MAX_MINIMA // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_RECALL:
            best = (bands, rows)
    return best


def signatures(of: Ngrams, num_minima: int) -> npt.NDArray[np.uint32]:
    """The minima of each text, [T, K]; a text without n-grams has the largest number everywhere.

    Of 32 bits: twice as fast as of 64, and two texts of a million n-grams have one in 4,000 equal by chance.
    """
    numbers = np.arange(1, num_minima + 1, dtype=np.uint64)
    multiplier_K = (mix(numbers) | np.uint64(1)).astype(np.uint32)
    addend_K = mix(numbers + np.uint64(10_000)).astype(np.uint32)
    half_G = (of.hash_G >> np.uint64(32)).astype(np.uint32)
    full_F = np.flatnonzero(of.count_T > 0)  # texts with n-grams
    start_F = of.start_T[full_F]
    end_F = start_F + of.count_T[full_F]
    minima_KF = np.empty((num_minima, len(full_F)), dtype=np.uint32)
    first = 0
    while first < len(full_F):
        start = int(start_F[first])
        last = max(first + 1, int(np.searchsorted(end_F, start + BLOCK_NGRAMS, side="right")))
        block_G = half_G[start : int(end_F[last - 1])]
        permuted_G = np.empty_like(block_G)
        for k in range(num_minima):
            np.multiply(block_G, multiplier_K[k], out=permuted_G)
            permuted_G += addend_K[k]
            np.minimum.reduceat(permuted_G, start_F[first:last] - start, out=minima_KF[k, first:last])
        first = last
    minima_TK = np.full((len(of.count_T), num_minima), np.iinfo(np.uint32).max, dtype=np.uint32)
    minima_TK[full_F] = minima_KF.T
    return minima_TK


def bands(of: Ngrams, threshold: float) -> IntArray:
    """The hash of each band of each text, [T, B]; those of texts without n-grams are all 0."""
    num_bands, rows = band_shape(threshold)
    minima_TBR = signatures(of, num_bands * rows).reshape(-1, num_bands, rows)
    hash_TB = np.zeros(minima_TBR.shape[:2], dtype=np.uint64)
    for row in range(rows):
        hash_TB ^= minima_TBR[:, :, row].astype(np.uint64)
        hash_TB = mix(hash_TB)
    hash_TB[of.count_T == 0] = 0
    return hash_TB.view(np.int64)


def ngram_sets(of: Ngrams) -> list[UintArray]:
    """The distinct n-grams of each text, in order of their hashes."""
    ends = of.start_T + of.count_T
    return [np.unique(of.hash_G[start:end]) for start, end in zip(of.start_T.tolist(), ends.tolist(), strict=True)]


def jaccard(one: UintArray, other: UintArray) -> float:
    """The Jaccard similarity of two sets of `ngram_sets`; of two empty ones 1."""
    if not len(one) and not len(other):
        return 1.0
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)
