"""A batch of cleaned texts, and what several filters want to know of them, computed once and only when asked for.

All texts become one array of code points with a newline after each; every feature is arithmetic over that array.
At the peak 42 bytes a character of English and 101 of Chinese (30 a byte), so give batches of 100,000 to 500,000
characters, which is also where it is fastest. Not for one short text at a time: that costs milliseconds a filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from components.corpus.filters.segments import Bools, Ints, Segments, line_runs, word_runs
from components.corpus.hashing import RunHashes, mix
from components.corpus.scripts import (
    LATIN_WIDTH,
    UNITS_PER_WORD,
    CharacterClass,
    class_table,
)

Floats = npt.NDArray[np.float64]
_NEWLINE = 0x0A


class TextBatch:
    """N texts. Every feature "a text" is an array (N,), in the order of the texts."""

    def __init__(self, texts: Sequence[str]) -> None:
        """`texts` must be valid Unicode (no lone surrogates); any may be empty."""
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def array(self) -> pa.LargeStringArray:
        """The texts, for `pyarrow.compute`."""
        return pa.array(self.texts, pa.large_string())

    @cached_property
    def num_characters(self) -> Ints:
        """Characters a text."""
        return np.fromiter(map(len, self.texts), np.int64, len(self.texts))

    @cached_property
    def offsets(self) -> Ints:
        """Where each text begins among `codes`, and, last, their number, (N + 1,)."""
        return np.concatenate(([0], np.cumsum(self.num_characters + 1)))

    @cached_property
    def codes(self) -> npt.NDArray[np.uint32]:
        """Code points of all texts, a newline after each."""
        joined = "\n".join(self.texts) + "\n" if len(self.texts) else ""
        return np.frombuffer(joined.encode("utf-32-le"), np.uint32)

    @cached_property
    def classes(self) -> npt.NDArray[np.uint8]:
        """The `CharacterClass` of each of `codes`."""
        return class_table()[self.codes]

    @cached_property
    def hashes(self) -> RunHashes:
        """Hashes of runs of `codes`."""
        return RunHashes(self.codes)

    @cached_property
    def words(self) -> Segments:
        """Words, in scripts without spaces letters; see `segments.word_runs`."""
        return self._segments(*word_runs(self.classes))

    @cached_property
    def lines(self) -> Segments:
        """Lines with something to see, without the spaces around."""
        return self._numbered_lines[0]

    @cached_property
    def paragraphs(self) -> Segments:
        """Lines in a row with no blank line between them."""
        lines, numbers = self._numbered_lines
        if not len(lines):
            return lines
        follows = (lines.texts[1:] == lines.texts[:-1]) & (numbers[1:] == numbers[:-1] + 1)
        first, last = np.append(True, ~follows), np.append(~follows, True)
        return Segments(lines.starts[first], lines.ends[last], lines.texts[first])

    @cached_property
    def languages(self) -> tuple[list[str], Floats]:
        """ISO 639 code and its probability, a text; "und" where there is none."""
        from components.corpus.language import languages

        return languages(self.texts)

    @cached_property
    def num_lines(self) -> Ints:
        """Lines that are not blank, a text."""
        return self.count(self.lines)

    @cached_property
    def num_words(self) -> Floats:
        """Words a text; where there are no spaces, as many as the letters would be in English (`UNITS_PER_WORD`)."""
        words = self.count(self.words).astype(np.float64)
        for class_, units_per_word in UNITS_PER_WORD.items():
            # Whole units are counted before they are divided, so that 70 / 1.4 is 50 and on a threshold.
            units = self.count_characters(self.classes == class_)
            words += units / units_per_word - units
        return words

    @cached_property
    def is_spaced(self) -> Bools:
        """Whether at least half of the letters are of scripts with spaces, a text; true if it has no letters."""
        return 2 * self.count_characters(self.classes >= CharacterClass.HAN) <= self.num_letters

    @cached_property
    def is_han(self) -> Bools:
        """Whether most of the letters are Chinese characters or kana, a text."""
        east = (self.classes == CharacterClass.HAN) | (self.classes == CharacterClass.KANA)
        return 2 * self.count_characters(east) > self.num_letters

    @cached_property
    def num_letters(self) -> Ints:
        """Letters of any script, a text."""
        return self.count_characters(self.classes >= CharacterClass.LETTER)

    @cached_property
    def num_visible(self) -> Ints:
        """Characters that are not whitespace, a text."""
        return self.count_characters(self.classes != CharacterClass.SPACE)

    def line_widths(self) -> Ints:
        """Width of each of `lines` in English characters (`LATIN_WIDTH`), (K,)."""
        widths = np.ones(len(self.classes), np.int64)
        for class_, width in LATIN_WIDTH.items():
            widths[self.classes == class_] = width
        before = np.concatenate(([0], np.cumsum(widths)))
        width_of_lines: Ints = before[self.lines.ends] - before[self.lines.starts]
        return width_of_lines

    def ends_with(self, segments: Segments, characters: str) -> Bools:
        """Which segments end with one of `characters`, (K,)."""
        return np.isin(self.codes[segments.ends - 1], code_points(characters))

    def starts_with(self, segments: Segments, characters: str) -> Bools:
        """Which segments start with one of `characters`, (K,)."""
        return np.isin(self.codes[segments.starts], code_points(characters))

    def count(self, segments: Segments) -> Ints:
        """Segments a text."""
        return np.bincount(segments.texts, minlength=len(self)).astype(np.int64)

    def total(self, segments: Segments, values: npt.NDArray[np.generic]) -> Floats:
        """Sum of `values`, (K,), over the segments of each text."""
        return np.bincount(segments.texts, values, minlength=len(self)).astype(np.float64)

    def count_characters(self, mask: Bools) -> Ints:
        """How many of `codes` have a true `mask`, a text."""
        if not len(self):
            return np.zeros(0, np.int64)
        return np.add.reduceat(mask, self.offsets[:-1], dtype=np.int64)

    def repeats(self, segments: Segments) -> Bools:
        """Which segments are the same, in the same text, as an earlier one, (K,)."""
        keys = self.hashes.of(segments.starts, segments.ends) ^ text_keys(segments.texts)
        repeated = np.ones(len(keys), np.bool_)
        repeated[np.unique(keys, return_index=True)[1]] = False
        return repeated

    @cached_property
    def _numbered_lines(self) -> tuple[Segments, Ints]:
        starts, ends, numbers = line_runs(self.codes == _NEWLINE, self.classes != CharacterClass.SPACE)
        return self._segments(starts, ends), numbers

    def _segments(self, starts: Ints, ends: Ints) -> Segments:
        return Segments(starts, ends, np.searchsorted(self.offsets, starts, side="right") - 1)


def text_keys(texts: Ints) -> npt.NDArray[np.uint64]:
    """What makes hashes of different texts differ: 64 bits for the number of the text."""
    return mix(texts)


def share(part: npt.NDArray[np.number], whole: npt.NDArray[np.number]) -> Floats:
    """`part` / `whole`, 0 where `whole` is 0."""
    shares: Floats = np.divide(part, whole, out=np.zeros(len(part)), where=whole != 0)
    return shares


def code_points(characters: str) -> npt.NDArray[np.uint32]:
    """The code point of each character, (len(characters),)."""
    return np.fromiter(map(ord, characters), np.uint32, len(characters))
