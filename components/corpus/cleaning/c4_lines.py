"""C4's rules for the lines in a page (Raffel et al. 2020, JMLR 21(140), section 2.2, and its code, `c4_utils.py`).

A line stays that ends in terminal punctuation, but not in "...", has five words, none of over 1000 characters, and does
not speak of JavaScript, cookies or terms of use; marks of citations ("[1]", "[edit]") are taken out. A text of which no
line stays is empty. The rules for the whole page are the filter `c4`.

For scripts without spaces: 。！？… and closing quotation marks end a line; five words are seven Chinese characters (see
`scripts.py`); lines of Thai and its neighbours, which end without a mark, need none. The Chinese phrases for
terms of use are ours. Verse, lists, tables, headings and code all go: for running prose from the web alone. 5 MB/s on
one core.
"""

from __future__ import annotations

import re

import numpy as np

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.segments import Bools
from components.corpus.scripts import LINE_ENDS

MIN_WORDS = 5
MAX_WORD_CHARACTERS = 1000
_CITATION = re.compile(r"\[[0-9]*\]|\[edit\]|\[citation needed\]")
_UNWANTED = re.compile(
    "javascript|terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
    "|使用条款|使用條款|隐私政策|隱私政策|隐私权政策|隱私權政策",
    re.IGNORECASE,
)


def with_c4_lines(texts: list[str]) -> list[str]:
    """`texts` with only the lines that C4 would keep; blank lines stay, so that paragraphs do."""
    lines_of = [_CITATION.sub("", text).split("\n") for text in texts]
    batch = TextBatch([line for lines in lines_of for line in lines])
    kept = iter(_keeps(batch))
    return ["\n".join([line for line in lines if next(kept)]).strip() for lines in lines_of]


def _keeps(batch: TextBatch) -> Bools:
    """Which lines stay, each a text of `batch`, (N,)."""
    lines = batch.lines
    ended = np.zeros(len(batch), np.bool_)
    ended[lines.texts[batch.ends_with(lines, LINE_ENDS)]] = True
    longest = np.zeros(len(batch), np.int64)
    np.maximum.at(longest, batch.words.texts, batch.words.lengths)
    wanted = np.fromiter(
        (not text.rstrip().endswith("...") and _UNWANTED.search(text) is None for text in batch.texts),
        np.bool_,
        len(batch),
    )
    needs_no_end = ~batch.is_spaced & ~batch.is_han
    kept: Bools = (ended | needs_no_end) & (batch.num_words >= MIN_WORDS) & (longest <= MAX_WORD_CHARACTERS)
    kept &= wanted
    kept |= batch.num_lines == 0
    return kept
