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

from components.corpus.ngrams import IntArray, Ngrams, UintArray, mix

MAX_MINIMA = 128
MIN_RECALL = 0.99
BLOCK_NGRAMS = 1 << 14
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


def signatures(of: Ngrams, num_minima: int) -> npt.NDArray[np.uint64]:
    """The minima of each text, [T, K]; a text without n-grams has the largest number everywhere."""
    multiplier_K = mix(np.arange(1, num_minima + 1, dtype=np.uint64)) | np.uint64(1)
    addend_K = mix(np.arange(10_001, 10_001 + num_minima, dtype=np.uint64))
    minima_TK = np.full((len(of.start_T), num_minima), np.iinfo(np.uint64).max, dtype=np.uint64)
    full_T = np.flatnonzero(of.count_T > 0)
    first = 0
    while first < len(full_T):
        start = of.start_T[full_T[first]]
        last = int(np.searchsorted(of.start_T[full_T], start + BLOCK_NGRAMS, side="right"))
        last = max(first + 1, last - 1) if last < len(full_T) else last
        texts = full_T[first:last]
        end = of.start_T[texts[-1]] + of.count_T[texts[-1]]
        hash_G = of.hash_G[start:end]
        starts = of.start_T[texts] - start
        for k in range(num_minima):
            minima_TK[texts, k] = np.minimum.reduceat(hash_G * multiplier_K[k] + addend_K[k], starts)
        first = last
    return minima_TK


def bands(of: Ngrams, threshold: float) -> IntArray:
    """The hash of each band of each text, [T, B]; those of texts without n-grams are all 0."""
    num_bands, rows = band_shape(threshold)
    minima_TBR = signatures(of, num_bands * rows).reshape(-1, num_bands, rows)
    hash_TB = np.zeros(minima_TBR.shape[:2], dtype=np.uint64)
    for row in range(rows):
        hash_TB = mix(hash_TB ^ minima_TBR[:, :, row])
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
