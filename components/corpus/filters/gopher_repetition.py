"""Gopher's repetition rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1, table A1).

Shares of lines and paragraphs that repeat an earlier one of the text, and of the characters in them; of the characters
in the most frequent 2-, 3- and 4-gram of words; of the characters in 5- to 10-grams that repeat an earlier one, each
character counted once. What the paper leaves open: characters are those of words, without spaces and punctuation,
above and below the line; an n-gram that occurs once is no repetition; of equally frequent n-grams the longest counts.

Where there are no spaces, a gram of n words is as many letters as stand for n words in that text
(`scripts.UNITS_PER_WORD`): 7 Chinese characters for 5 words. With n characters instead, a name of five characters that
is mentioned a few times would get a page dropped.

A gram that repeats contains shorter grams that repeat, so only the 2-grams are all sorted, and for each longer n only
the places where the one before repeated: 10 MB/s on one core of English, 14 of Chinese. Not for short texts, verse
with a refrain, or tables.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from components.corpus.filters.batch import Floats, TextBatch, share, text_keys
from components.corpus.filters.segments import Bools, Ints, Segments
from components.corpus.hashing import RunHashes
from infra.journal.config import FrozenConfig

Fraction = Annotated[float, Field(ge=0, le=1)]
_TOP_NS = (2, 3, 4)
_DUPLICATE_NS = (5, 6, 7, 8, 9, 10)


class GopherRepetition(FrozenConfig):
    """Keeps texts none of whose shares is above its limit; the defaults are the paper's."""

    name: Literal["gopher_repetition"] = "gopher_repetition"
    max_duplicate_line_fraction: Fraction = Field(0.3, description="share of lines that repeat an earlier one")
    max_duplicate_paragraph_fraction: Fraction = Field(0.3, description="share of paragraphs that do")
    max_duplicate_line_character_fraction: Fraction = Field(0.2, description="share of characters in such lines")
    max_duplicate_paragraph_character_fraction: Fraction = Field(0.2, description="and in such paragraphs")
    max_top_gram_fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.2, 0.18, 0.16), description="share of characters in the most frequent 2-, 3- and 4-gram"
    )
    max_duplicate_gram_fractions: tuple[Fraction, Fraction, Fraction, Fraction, Fraction, Fraction] = Field(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), description="share of characters in repeated 5-, 6-, ... 10-grams"
    )

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts repeat themselves little enough, (N,)."""
        kept = np.ones(len(batch), np.bool_)
        for segments, most, most_characters in (
            (batch.lines, self.max_duplicate_line_fraction, self.max_duplicate_line_character_fraction),
            (batch.paragraphs, self.max_duplicate_paragraph_fraction, self.max_duplicate_paragraph_character_fraction),
        ):
            repeated = segments.where(batch.repeats(segments))
            kept &= batch.count(repeated) <= most * batch.count(segments)
            characters = batch.total(segments, segments.lengths)
            kept &= batch.total(repeated, repeated.lengths) <= most_characters * characters
        for fractions, most in zip(
            gram_fractions(batch), (*self.max_top_gram_fractions, *self.max_duplicate_gram_fractions), strict=True
        ):
            kept &= fractions <= most
        return kept


def gram_fractions(batch: TextBatch) -> list[Floats]:
    """For n of 2 to 10, the share of characters in top (to 4) or repeated (from 5) n-grams, 9 x (N,)."""
    words = batch.words
    num_words = batch.count(words)
    units_per_word = np.where(num_words > 0, share(num_words, batch.num_words), 1.0)
    word_hashes = RunHashes(batch.hashes.of(words.starts, words.ends))
    before = np.concatenate(([0], np.cumsum(words.lengths)))
    characters = batch.total(words, words.lengths)
    text_ends = np.cumsum(num_words)

    fractions = []
    grams = Segments(np.arange(len(words)), np.arange(len(words)), words.texts)
    for n in (*_TOP_NS, *_DUPLICATE_NS):
        gram_units = np.maximum(np.rint(n * units_per_word), 1).astype(np.int64)
        grams = Segments(grams.starts, grams.starts + gram_units[grams.texts], grams.texts)
        grams = grams.where(grams.ends <= text_ends[grams.texts])
        grams, is_first, counts = _repeated(word_hashes, grams)
        if n in _TOP_NS:
            part: Floats | Ints = _top_characters(grams.where(is_first), counts[is_first], before, len(batch))
        else:
            part = _covered_characters(grams.where(~is_first), before, len(batch))
        fractions.append(share(part, characters))
    return fractions


def _repeated(word_hashes: RunHashes, grams: Segments) -> tuple[Segments, Bools, Ints]:
    """The grams that occur twice or more in their text, in order; which are the first of their kind; how often each
    kind occurs."""
    keys = word_hashes.of(grams.starts, grams.ends) ^ text_keys(grams.texts)
    order = np.argsort(keys)
    keys = keys[order]
    as_before = np.zeros(len(keys) + 1, np.bool_)
    as_before[1:-1] = keys[1:] == keys[:-1]
    in_group = as_before[:-1] | as_before[1:]
    members = order[in_group]
    group_starts = np.flatnonzero(~as_before[:-1][in_group])
    if not len(members):
        return grams.where(np.zeros(len(grams), np.bool_)), np.zeros(0, np.bool_), np.zeros(0, np.int64)
    counts = np.diff(group_starts, append=len(members))
    is_first = members == np.repeat(np.minimum.reduceat(members, group_starts), counts)
    by_place = np.argsort(members)
    members = members[by_place]
    repeated = Segments(grams.starts[members], grams.ends[members], grams.texts[members])
    return repeated, is_first[by_place], np.repeat(counts, counts)[by_place]


def _top_characters(grams: Segments, counts: Ints, before: Ints, num_texts: int) -> Ints:
    """Characters in the most frequent gram of each text, (num_texts,): occurrences times length."""
    best = np.zeros(num_texts, np.int64)
    np.maximum.at(best, grams.texts, (counts << 32) | (before[grams.ends] - before[grams.starts]))
    return (best >> 32) * (best & 0xFFFFFFFF)


def _covered_characters(grams: Segments, before: Ints, num_texts: int) -> Floats:
    """Characters in any of `grams`, which are in order, each counted once, (num_texts,)."""
    starts = grams.starts.copy()
    starts[1:] = np.maximum(starts[1:], grams.ends[:-1])
    return np.bincount(grams.texts, before[grams.ends] - before[starts], minlength=num_texts).astype(np.float64)
