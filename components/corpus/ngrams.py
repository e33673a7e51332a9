"""N-grams of words as 64-bit hashes, over a batch of texts at once: what near-duplicates and overlaps are found by.

A word is a run of letters, marks and digits, case folded; a character of a script without spaces (`scripts.py`) is a
word of its own, so an n-gram means something in Chinese too. Punctuation and spacing do not count.

All in numpy, by windows that stay in the cache of a core. A hash is a polynomial with a fixed odd base modulo 2^64
(Karp and Rabin 1987), over the characters of a word and again over the words of an n-gram. Two different ones share it
with a probability of about 2^-50; nothing here withstands somebody who wants a collision.

Shapes: T texts, C characters of all of them, N characters of a window, W words, G n-grams.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from components.corpus.hashing import mix
from components.corpus.scripts import SPACELESS_RANGES

UintArray = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]
WINDOW = 1 << 14
"""Characters, or words, that are worked on at a time."""
MAX_WORD = 1 << 12
"""Characters of a word; a longer run is several words."""
_SEPARATOR = "\n"
_SPACELESS, _EXPANDS = 1 << 24, 1 << 25
_SELECTORS = slice(0xFE00, 0xFE10)
"""Marks that choose how a character looks, behind emoji above all: no words."""
_BASE_OF_CHARACTERS = 0x9E6D62D06F6A9A9D
_BASE_OF_WORDS = 0xC6A4A7935BD1E995
"""Both are 5 modulo 8, so that no power below the 2^62nd is 1."""


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


@lru_cache(maxsize=1)
def _values() -> npt.NDArray[np.uint32]:
    """What each code point is in a word, [0x110000]: itself, case folded; 0 where it is in none."""
    table = np.zeros(0x110000, dtype=np.uint32)
    for code in range(0x20000):  # beyond, there are Han, and marks and tags
        character = chr(code)
        if unicodedata.category(character)[0] in "LMN":
            folded = character.casefold()
            table[code] = ord(folded) if len(folded) == 1 else code | _EXPANDS
    table[_SELECTORS] = 0
    for start, end in SPACELESS_RANGES:
        part = table[start:end]
        if start >= 0x20000:
            part[:] = np.arange(start, end)
        part[part > 0] |= _SPACELESS
    return table


@lru_cache(maxsize=1)
def _ascii_values() -> bytes:
    return bytes(_values()[:128].astype(np.uint8)) + bytes(128)


def power(base: int, exponent: int) -> np.uint64:
    """`base` to the power of `exponent`, which may be negative, modulo 2^64."""
    return np.uint64(pow(base, exponent, 1 << 64))


@lru_cache(maxsize=2)
def _powers(step: int) -> UintArray:
    """Of the base of characters: those of 0, 1, ..., or, with -1 for `step`, of 0, -1, ..."""
    factors = np.full(WINDOW, power(_BASE_OF_CHARACTERS, step))
    factors[0] = 1
    return np.multiply.accumulate(factors)


def words(texts: Sequence[str]) -> Words:
    """The words of `texts`."""
    value_of, code_C, length_T = _characters(texts)
    hashes, places = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    try:
        for begin, place_W, hash_W in _by_window(value_of, code_C):
            places.append(place_W + begin)
            hashes.append(hash_W)
    except _ExpandsError:
        return words([text.casefold() for text in texts])
    ends_T = np.searchsorted(np.concatenate(places), np.cumsum(length_T + len(_SEPARATOR)))
    count_T = np.diff(ends_T, prepend=0)
    return Words(hash_W=np.concatenate(hashes), start_T=ends_T - count_T, count_T=count_T)


class _ExpandsError(Exception):
    """A character that is several when its case is folded."""


def _characters(texts: Sequence[str]) -> tuple[Callable[[Any], npt.NDArray[Any]], npt.NDArray[Any], IntArray]:
    """The characters of all texts, what makes values of them, and the length of each text."""
    joined = _SEPARATOR.join(texts)
    if "ß" in joined:  # the only one of its kind that is frequent: to fold whole texts takes 20 times as long
        texts = [text.replace("ß", "ss") for text in texts]
        joined = _SEPARATOR.join(texts)
    length_T = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    if joined.isascii():
        return np.asarray, np.frombuffer(joined.encode().translate(_ascii_values()), dtype=np.uint8), length_T
    table = _values()
    return table.__getitem__, np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32), length_T


def _by_window(
    value_of: Callable[[Any], npt.NDArray[Any]], code_C: npt.NDArray[Any]
) -> Iterator[tuple[int, IntArray, UintArray]]:
    """Of each window: where it begins, where in it words begin, and their hashes."""
    begin = 0
    rising, falling = _powers(1), _powers(-1)
    product_N = np.empty(WINDOW, dtype=np.uint64)
    while begin < len(code_C):
        value_N = value_of(code_C[begin : begin + WINDOW])
        size = len(value_N)
        place_W, open_end = _word_places(value_N)
        after = begin + size
        np.multiply(value_N, rising[:size], out=product_N[:size])
        if len(place_W):
            hash_W = np.add.reduceat(product_N[:size], place_W)
            if open_end and after < len(code_C):  # the last word may go on
                after = begin + int(place_W[-1])
                place_W, hash_W = place_W[:-1], hash_W[:-1]
            hash_W *= falling[place_W]
            yield begin, place_W, mix(hash_W)
        begin = after


def _word_places(value_N: npt.NDArray[Any]) -> tuple[IntArray, bool]:
    """Where words begin in a window, which begins with no word's rest; and whether the last one reaches its end."""
    letter_N = value_N != 0
    spaceless_N = None
    if value_N.dtype != np.uint8 and (highest := value_N.max()) >= _SPACELESS:
        if highest >= _EXPANDS:
            raise _ExpandsError
        spaceless_N = value_N >= _SPACELESS
        letter_N ^= spaceless_N
    begins_N = letter_N.copy()
    np.greater(letter_N[1:], letter_N[:-1], out=begins_N[1:])
    if spaceless_N is not None:
        begins_N |= spaceless_N
    place_W = np.flatnonzero(begins_N)
    if len(place_W) and int(np.diff(place_W, append=len(value_N)).max()) > MAX_WORD:
        gap_W = np.diff(place_W, append=len(value_N))
        more = [place_W]
        for first, gap in zip(place_W[gap_W > MAX_WORD].tolist(), gap_W[gap_W > MAX_WORD].tolist(), strict=True):
            run = letter_N[first : first + gap]
            length = gap if run.all() else int(run.argmin())
            more.append(np.arange(first + MAX_WORD, first + length, MAX_WORD))
        place_W = np.sort(np.concatenate(more))
    return place_W, bool(letter_N[-1])


def ngrams(of: Words, length: int, *, short: bool = True) -> Ngrams:
    """The n-grams of `length` words of each text, in order.

    Args:
        of: the words.
        length: words of an n-gram.
        short: a text of fewer words, but of one at least, is one n-gram of all its words; else it has none.
    """
    num_words = len(of.hash_W)
    hash_W = np.zeros(num_words, dtype=np.uint64)
    for begin, part in sums(of.hash_W, length):
        hash_W[begin : begin + len(part)] = part
    whole_W = np.ones(num_words, dtype=bool)
    end_T = of.start_T + of.count_T
    for distance in range(1, min(length, int(of.count_T.max(initial=0)) + 1)):
        whole_W[end_T[of.count_T >= distance] - distance] = False
    count_T = np.maximum(of.count_T - (length - 1), 0)
    if short:
        short_T = (of.count_T > 0) & (of.count_T < length)
        first_T = of.start_T[short_T]
        whole_W[first_T] = True
        hash_W[first_T] = sums_at(of.hash_W, first_T, of.count_T[short_T])
        count_T[short_T] = 1
    return Ngrams(hash_G=hash_W[whole_W], start_T=np.cumsum(count_T) - count_T, count_T=count_T)


def sums(hash_W: UintArray, length: int) -> Iterator[tuple[int, UintArray]]:
    """The hash of the n-gram that begins at each word, whatever texts the words are of, [W - length + 1]; by windows,
    each with where it begins."""
    last = len(hash_W) - length + 1
    for begin in range(0, last, WINDOW):
        one = hash_W[begin : min(begin + WINDOW, last) + length - 1]
        sum_W, reached = one, 1
        for bit in f"{length:b}"[1:]:
            sum_W = sum_W[: len(sum_W) - reached] + sum_W[reached:] * power(_BASE_OF_WORDS, reached)
            reached *= 2
            if bit == "1":
                sum_W = sum_W[:-1] + one[reached:] * power(_BASE_OF_WORDS, reached)
                reached += 1
        yield begin, sum_W


def sums_at(hash_W: UintArray, first_G: IntArray, length_G: IntArray) -> UintArray:
    """The hashes of some n-grams: those of the `length_G` words from `first_G` on."""
    sum_G = np.zeros(len(first_G), dtype=np.uint64)
    for offset in range(int(length_G.max(initial=0))):
        more = np.flatnonzero(length_G > offset)
        sum_G[more] += hash_W[first_G[more] + offset] * power(_BASE_OF_WORDS, offset)
    return sum_G
