"""Scripts: which characters are words of their own, the class of each code point, and how much text one stands for.

Rules for web text are written for English: so many words, so many characters a line. Chinese, Japanese, Thai, Lao,
Khmer, Burmese and Tibetan put no spaces between words, and segmenting them needs a model a language. Here every letter
of such a script is a unit of its own, and a rule that speaks of n English words means n times `UNITS_PER_WORD` units.
The numbers are the same text in each language: the articles of the Universal Declaration of Human Rights, 1681 English
words of 10,269 characters, are 2433 (simplified) and 2361 (traditional) Chinese characters; 1722 kanji and 1961 kana;
7023 Thai, 7276 Lao, 6027 Khmer, 6023 Burmese and 6095 Tibetan letters, vowel signs not counted. They are averages: a
poem packs more into a character than a statute. Korean has spaces and is treated like English.
"""

from __future__ import annotations

import unicodedata
from enum import IntEnum
from functools import cache

import numpy as np
import numpy.typing as npt


class CharacterClass(IntEnum):
    """Classes are disjoint. `LETTER` is a letter of a script with spaces; the next three have none."""

    OTHER = 0
    """Digits, symbols, format characters."""
    SPACE = 1
    PUNCTUATION = 2
    MARK = 3
    """Accents and vowel signs that belong to the letter before them."""
    LETTER = 4
    HAN = 5
    KANA = 6
    SOUTHEAST_ASIAN = 7
    """Thai, Lao, Khmer, Burmese, Tibetan."""


UNITS_PER_WORD = {CharacterClass.HAN: 1.4, CharacterClass.KANA: 4.0, CharacterClass.SOUTHEAST_ASIAN: 4.0}
"""Letters that say as much as one English word."""
LATIN_WIDTH = {CharacterClass.HAN: 4, CharacterClass.KANA: 2}
"""English characters, spaces included, that one letter stands for; 1 for every other character."""

HAN_RANGES = (
    (0x3005, 0x3006),  # repetition
    (0x3007, 0x3008),  # zero
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xF900, 0xFB00),
    (0x20000, 0x40000),
)
"""Half open, as all here: what regular expressions call `\\p{Han}`, but for radicals."""
KANA_RANGES = ((0x3040, 0x3100), (0x31F0, 0x3200), (0xFF66, 0xFFA0), (0x1AFF0, 0x1B170))
SOUTHEAST_ASIAN_RANGES = ((0x0E00, 0x10A0), (0x1780, 0x1800), (0xA9E0, 0xAA00), (0xAA60, 0xAA80))
SPACELESS_RANGES = (*SOUTHEAST_ASIAN_RANGES, *KANA_RANGES, *HAN_RANGES)
"""Letters here stand for words: no space tells where one ends."""
_NUM_TABLED = 0x32400
"""Beyond it lie no assigned letters, only variation selectors and private use."""

TERMINAL_PUNCTUATION = "".join(
    (
        ".!?",
        "。！？…｡．",  # Chinese, Japanese
        "؟۔",  # Arabic, Urdu
        "।॥",  # Devanagari and its neighbours
        "։።፧።၊။།༎។៕",  # Armenian, Ethiopic, Burmese, Tibetan, Khmer
    )
)
"""What ends a sentence. Thai and Lao write none."""
LINE_ENDS = TERMINAL_PUNCTUATION + "\"'”’」』"
"""What a line of prose ends with, or a quotation at its end: C4's and FineWeb's . ! ? " ' in every script."""


def is_in(character: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    """Whether `character` is in one of the half-open `ranges`."""
    code = ord(character)
    return any(start <= code < end for start, end in ranges)


@cache
def class_table() -> npt.NDArray[np.uint8]:
    """The class of every code point, (0x110000,); made in 0.1 seconds, once a process."""
    by_category = {"L": CharacterClass.LETTER, "M": CharacterClass.MARK, "P": CharacterClass.PUNCTUATION}
    table = np.zeros(0x110000, np.uint8)
    for code in range(_NUM_TABLED):
        character = chr(code)
        if character.isspace():
            table[code] = CharacterClass.SPACE
        else:
            table[code] = by_category.get(unicodedata.category(character)[0], CharacterClass.OTHER)
    table[0xE0100:0xE01F0] = CharacterClass.MARK
    for ranges, class_ in (
        (HAN_RANGES, CharacterClass.HAN),
        (KANA_RANGES, CharacterClass.KANA),
        (SOUTHEAST_ASIAN_RANGES, CharacterClass.SOUTHEAST_ASIAN),
    ):
        for start, end in ranges:
            part = table[start:end]
            part[part == CharacterClass.LETTER] = class_
    table[[0x3005, 0x3007]] = CharacterClass.HAN
    table.setflags(write=False)
    return table
