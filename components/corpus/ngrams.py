"""N-grams of words as 64-bit hashes, over a batch of texts at once: what near-duplicates and overlaps are found by.

A word is a run of letters and digits, case folded; a character of a script without spaces (Han, Kana, Thai, Lao,
Burmese, Khmer) is a word of its own, so an n-gram means something in Chinese too. Punctuation and spacing do not count.
All in numpy: some 40 MB/s on one core. Two different words share a hash with a probability of 2^-64 or so; nothing here
withstands somebody who wants a collision.

Shapes: T texts, C characters of all of them, W words, G n-grams.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

UintArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
SEPARATOR = "\x00"
"""Between two texts of a batch; cleaned texts have no control characters."""
_SEPARATES, _LETTER, _SPACELESS = 0, 1, 2
_SPACELESS_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han, as all that follows
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_WEIGHT_PLACES = 256
"""Places in a word with weights of their own; a longer one begins again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """The words of a batch of texts, as hashes, one text after another."""

    hash_W: UintArray
    start_T: IntArray
    """Where each text begins in `hash_W`."""
    count_T: IntArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Ngrams:
    """The n-grams of a batch of texts, as hashes, one text after another."""

    hash_G: UintArray
    start_T: IntArray
    count_T: IntArray


def mix(values: UintArray) -> UintArray:
    """A bijection of 64-bit words after which every bit depends on every bit (SplitMix64, Steele et al. 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@lru_cache(maxsize=1)
def _classes() -> npt.NDArray[np.uint8]:
    """What each code point is, [0x110000]."""
    table = np.zeros(0x110000, dtype=np.uint8)
    # Beyond the Han planes there are marks and tags only.
    table[:0x20000] = [unicodedata.category(chr(code))[0] in "LMN" for code in range(0x20000)]
    for low, high in _SPACELESS_SCRIPTS:
        part = table[low : high + 1]
        part[part > 0] = _SPACELESS
        if low >= 0x20000:
            part[:] = _SPACELESS
    return table


@lru_cache(maxsize=1)
def _weights() -> UintArray:
    return mix(np.arange(1, _WEIGHT_PLACES + 1, dtype=np.uint64)) | np.uint64(1)


def words(texts: Sequence[str]) -> Words:
    """The words of `texts`.

    Args:
        texts: without U+0000, as `normalise.clean` leaves them.
    """
    joined = SEPARATOR.join(texts).casefold()
    code_C = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    class_C = _classes()[code_C]
    letter_C = class_C == _LETTER
    begins_C = class_C == _SPACELESS
    begins_C[0:1] |= letter_C[0:1]
    begins_C[1:] |= letter_C[1:] & ~letter_C[:-1]
    start_W = np.flatnonzero(begins_C)
    boundary = np.flatnonzero(code_C == 0)
    first_T = np.concatenate([[0], np.searchsorted(start_W, boundary)]) if len(texts) else np.zeros(0, dtype=np.int64)
    counts_T = np.diff(np.append(first_T, len(start_W)))
    if not len(start_W):
        return Words(hash_W=np.zeros(0, dtype=np.uint64), start_T=first_T, count_T=counts_T)
    steps_C = np.arange(len(code_C), dtype=np.int64)
    place_C = steps_C - np.maximum.accumulate(np.where(begins_C, steps_C, 0))
    value_C = (code_C.astype(np.uint64) + np.uint64(1)) * _weights()[place_C % _WEIGHT_PLACES]
    value_C[class_C == _SEPARATES] = 0
    hash_W = mix(np.add.reduceat(value_C, start_W))
    return Words(hash_W=hash_W, start_T=first_T.astype(np.int64), count_T=counts_T.astype(np.int64))


def ngrams(of: Words, length: int, *, short: bool = True) -> Ngrams:
    """The n-grams of `length` words of each text, in order.

    Args:
        of: the words.
        length: words of an n-gram.
        short: a text of fewer words, but of one at least, is one n-gram of all its words; else it has none.
    """
    num_words = len(of.hash_W)
    end_W = np.repeat(of.start_T + of.count_T, of.count_T)
    steps_W = np.arange(num_words, dtype=np.int64)
    sum_W = np.zeros(num_words, dtype=np.uint64)
    multipliers = mix(np.arange(1000, 1000 + length, dtype=np.uint64)) | np.uint64(1)
    for offset in range(min(length, int(of.count_T.max(initial=0)))):
        inside = num_words - offset
        term_W = of.hash_W[offset:] * multipliers[offset]
        sum_W[:inside] += np.where(steps_W[:inside] + offset < end_W[:inside], term_W, np.uint64(0))
    whole_W = steps_W + length <= end_W
    if short:
        first_T = of.start_T[(of.count_T > 0) & (of.count_T < length)]
        whole_W[first_T] = True
    kept_W = np.flatnonzero(whole_W)
    start_T = np.searchsorted(kept_W, of.start_T).astype(np.int64)
    end_T = np.searchsorted(kept_W, of.start_T + of.count_T).astype(np.int64)
    return Ngrams(hash_G=mix(sum_W[kept_W]), start_T=start_T, count_T=end_T - start_T)
