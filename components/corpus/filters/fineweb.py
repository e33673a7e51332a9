"""FineWeb's own three rules (Penedo et al. 2024, arXiv:2406.17557, section 3.4): menus, lists and boilerplate.

They were found by comparing a good with a bad crawl, and are meant to run after Gopher's and C4's. In the reference
implementation (datatrove) the limit for repeated lines is 0.01; here it is the paper's 0.1. Blank lines do not count.

For scripts without spaces: 。！？… and closing quotation marks end a line as . ! ? " ' do, and the 30 characters of a
short line are English ones: a Chinese character stands for 4, a kana for 2 (`scripts.LATIN_WIDTH`), so that a line of
verse with two halves of five characters is no short line. Thai and Lao end no line with a mark: texts mostly of the
letters without spaces other than Chinese and Japanese pass the first rule. Verse in Latin script has short lines and
would go. 22 MB/s on one core of English, 60 of Chinese.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.corpus.filters.batch import TextBatch, share
from components.corpus.filters.segments import Bools
from components.corpus.scripts import LINE_ENDS
from infra.journal.config import FrozenConfig


class FineWeb(FrozenConfig):
    """Keeps texts that none of the three rules drops; the defaults are the paper's."""

    name: Literal["fineweb"] = "fineweb"
    punctuated_line_fraction: float = Field(
        0.12, ge=0, le=1, description="texts are dropped whose share of lines that end with punctuation is this or less"
    )
    duplicate_line_character_fraction: float = Field(
        0.1, gt=0, le=1, description="or whose share of characters in lines that repeat an earlier one is this or more"
    )
    short_line_fraction: float = Field(0.67, gt=0, le=1, description="or whose share of short lines is this or more")
    short_line_characters: int = Field(30, ge=1, description="a line of fewer English characters is short")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts are neither lists nor boilerplate, (N,)."""
        lines = batch.lines
        punctuated = batch.count(lines.where(batch.ends_with(lines, LINE_ENDS)))
        kept: Bools = share(punctuated, batch.num_lines) > self.punctuated_line_fraction
        kept |= ~batch.is_spaced & ~batch.is_han
        repeated = lines.where(batch.repeats(lines))
        characters = batch.total(lines, lines.lengths)
        kept &= share(batch.total(repeated, repeated.lengths), characters) < self.duplicate_line_character_fraction
        short = batch.count(lines.where(batch.line_widths() < self.short_line_characters))
        return kept & (share(short, batch.num_lines) < self.short_line_fraction)
