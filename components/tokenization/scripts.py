"""The script of a piece of text, as far as a report on vocabularies needs it."""

from __future__ import annotations

import unicodedata

from components.corpus.scripts import HAN_RANGES, is_in


def is_han(character: str) -> bool:
    """Whether `character` is a Chinese character."""
    return is_in(character, HAN_RANGES)


def script_of(text: str) -> str:
    """`Han`, `Latin`, `other letters`, `digits`, `symbols` or `white space`: what its first letter is; without one, its
    first digit; without one, its first symbol."""
    letters = [character for character in text if unicodedata.category(character)[0] == "L"]
    if letters:
        if is_han(letters[0]):
            return "Han"
        return "Latin" if unicodedata.name(letters[0], "").startswith("LATIN") else "other letters"
    if any(unicodedata.category(character)[0] == "N" for character in text):
        return "digits"
    return "symbols" if text.strip() else "white space"
