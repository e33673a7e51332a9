"""Words and n-grams in plain Python, by the names of characters: what the hashes are compared with."""

from __future__ import annotations

import unicodedata

SPACELESS = (
    "TIBETAN",
    *("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC NUMBER ZERO", "IDEOGRAPHIC ITERATION MARK"),
    *("HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "COMBINING KATAKANA", "HENTAIGANA"),
    *("THAI ", "LAO ", "MYANMAR", "KHMER"),
)


def kind(character: str) -> str:
    """letter, spaceless, or nothing for what separates words."""
    name = unicodedata.name(character, "")
    if unicodedata.category(character)[0] not in "LMN" or name.startswith("VARIATION SELECTOR"):
        return ""
    return "spaceless" if name.startswith(SPACELESS) else "letter"


def words(text: str) -> list[str]:
    found: list[str] = []
    inside = False
    for character in text.casefold():
        what = kind(character)
        if what == "letter" and inside:
            found[-1] += character
        elif what:
            found.append(character)
        inside = what == "letter"
    return found


def ngrams(text: str, length: int, short: bool = True) -> list[tuple[str, ...]]:
    own = words(text)
    if len(own) < length:
        return [tuple(own)] if own and short else []
    return [tuple(own[start : start + length]) for start in range(len(own) - length + 1)]
