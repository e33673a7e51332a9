"""The script of a piece of text, as far as a report on vocabularies needs it."""

from __future__ import annotations

import unicodedata


def is_han(character: str) -> bool:
    """Whether `character` is a Chinese character."""
    code = ord(character)
    return (
        0x3400 <= code <= 0x4DBF or 0x4E00 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF or 0x20000 <= code <= 0x3FFFF
    )


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
