"""Gopher's quality rules (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1): is this prose at all?

Made for English web pages. For other text:

- Lengths are in English words (`TextBatch.num_words`): 50 words are 70 Chinese characters.
- The mean length of a word is looked at only where most letters are of a script with spaces.
- The stop words are English. They are not asked for where most letters have no spaces; there, if the text is mostly
  Chinese characters or kana, two of `stop_characters` must occur: the commonest grammatical characters of modern and
  classical Chinese and of Japanese. A page of names or part numbers has none. For Thai and its neighbours neither rule
  applies. For French or German set `stop_words` of that language or `min_stop_words: 0`: as it stands, the rule drops
  them, which is what it is for in an English corpus.
- Punctuation is no word, so that Chinese, of which every eighth character is punctuation, is not taken for symbols.

Not for short texts or verse: dictionary glosses and quatrains fail the 50 words. 12 MB/s on one core of English, 20 of
Chinese.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.compute as pc
from pydantic import Field

from components.corpus.filters.batch import TextBatch, code_points, share
from components.corpus.filters.segments import Bools, Ints
from components.corpus.scripts import CharacterClass
from infra.journal.config import FrozenConfig

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
STOP_CHARACTERS = "的是不了在有和一這这也之而其以為为のはをにが"
BULLETS = "•‣▪▫●○◦■□◆◇★☆·・*-–"
_ELLIPSES = r"\.{3,}|…+|。{3,}"


class GopherQuality(FrozenConfig):
    """Keeps texts that satisfy every rule; the defaults are the paper's."""

    name: Literal["gopher_quality"] = "gopher_quality"
    min_words: int = Field(50, ge=0, description="fewest words kept")
    max_words: int = Field(100_000, ge=1, description="most words kept")
    min_mean_word_characters: float = Field(3, ge=0, description="shortest mean word kept, characters")
    max_mean_word_characters: float = Field(10, gt=0, description="longest mean word kept, characters")
    max_symbols_per_word: float = Field(0.1, ge=0, description="most hash signs, and most ellipses, per word")
    max_bullet_line_fraction: float = Field(
        0.9, ge=0, le=1, description="largest share of lines starting with a bullet"
    )
    max_ellipsis_line_fraction: float = Field(
        0.3, ge=0, le=1, description="largest share of lines ending in an ellipsis"
    )
    min_alphabetic_word_fraction: float = Field(0.8, ge=0, le=1, description="smallest share of words with a letter")
    min_stop_words: int = Field(2, ge=0, description="how many different stop words, or stop characters, must occur")
    stop_words: tuple[str, ...] = Field(STOP_WORDS, description="stop words, in any case; for scripts with spaces")
    stop_characters: str = Field(STOP_CHARACTERS, description="stop characters; for Chinese and Japanese")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts are prose, (N,)."""
        return (
            (batch.num_words >= self.min_words)
            & (batch.num_words <= self.max_words)
            & self._has_common_word_lengths(batch)
            & self._has_few_symbols(batch)
            & self._has_few_list_lines(batch)
            & self._has_alphabetic_words(batch)
            & self._has_stop_words(batch)
        )

    def _has_common_word_lengths(self, batch: TextBatch) -> Bools:
        spaced = batch.words.where(batch.classes[batch.words.starts] < CharacterClass.HAN)
        mean = share(batch.total(spaced, spaced.lengths), batch.count(spaced))
        fits: Bools = (mean >= self.min_mean_word_characters) & (mean <= self.max_mean_word_characters)
        return fits | ~batch.is_spaced

    def _has_few_symbols(self, batch: TextBatch) -> Bools:
        most = self.max_symbols_per_word * batch.num_words
        hashes = pc.count_substring(batch.array, "#").to_numpy(zero_copy_only=False)
        ellipses = pc.count_substring_regex(batch.array, _ELLIPSES).to_numpy(zero_copy_only=False)
        few: Bools = (hashes <= most) & (ellipses <= most)
        return few

    def _has_few_list_lines(self, batch: TextBatch) -> Bools:
        lines = batch.lines
        bullets = batch.count(lines.where(batch.starts_with(lines, BULLETS)))
        long_enough = lines.lengths >= 3
        dots = batch.ends_with(lines, ".") & long_enough
        for back in (2, 3):
            dots &= batch.codes[lines.ends - np.where(long_enough, back, 1)] == ord(".")
        ellipses = batch.count(lines.where(dots | batch.ends_with(lines, "…")))
        few: Bools = bullets <= self.max_bullet_line_fraction * batch.num_lines
        return few & (ellipses <= self.max_ellipsis_line_fraction * batch.num_lines)

    def _has_alphabetic_words(self, batch: TextBatch) -> Bools:
        words = batch.words
        is_letter = batch.classes >= CharacterClass.LETTER
        alphabetic = is_letter[words.starts]
        rest = np.flatnonzero(~alphabetic)
        places = np.append(np.flatnonzero(is_letter), len(is_letter))
        alphabetic[rest] = places[np.searchsorted(places, words.starts[rest])] < words.ends[rest]
        return batch.count(words.where(alphabetic)) >= self.min_alphabetic_word_fraction * batch.count(words)

    def _has_stop_words(self, batch: TextBatch) -> Bools:
        enough = np.ones(len(batch), np.bool_)
        if self.min_stop_words == 0:
            return enough
        spaced = np.flatnonzero(batch.is_spaced)
        if len(spaced):
            enough[spaced] = self._count_stop_words(batch)[spaced] >= self.min_stop_words
        han = np.flatnonzero(batch.is_han)
        if len(han):
            enough[han] = self._count_stop_characters(batch)[han] >= self.min_stop_words
        return enough

    def _count_stop_words(self, batch: TextBatch) -> Ints:
        """How many different stop words each text has, (N,)."""
        longest = max(map(len, self.stop_words), default=0)
        lengths = batch.words.lengths
        found = np.zeros((len(self.stop_words), len(batch)), np.bool_)
        by_length = {length: batch.words.where(lengths == length) for length in range(1, longest + 1)}
        for row, word in enumerate(self.stop_words):
            words = by_length[len(word)]
            same = np.ones(len(words), np.bool_)
            for place, letter in enumerate(word):
                cases = [case for case in (letter.lower(), letter.upper()) if len(case) == 1]
                same &= np.isin(batch.codes[words.starts + place], code_points("".join(cases)))
            found[row, words.texts[same]] = True
        return np.asarray(found.sum(axis=0), np.int64)

    def _count_stop_characters(self, batch: TextBatch) -> Ints:
        """How many different stop characters each text has, (N,)."""
        letters = batch.words.where(batch.classes[batch.words.starts] >= CharacterClass.HAN)
        codes = batch.codes[letters.starts]
        found = np.zeros((len(self.stop_characters), len(batch)), np.bool_)
        for row, code in enumerate(code_points(self.stop_characters)):
            found[row, letters.texts[codes == code]] = True
        return np.asarray(found.sum(axis=0), np.int64)
