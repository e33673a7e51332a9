"""What a text is after cleaning, and what makes two texts the same text.

`clean` is what every later stage sees: corpus documents, labelled rows and the texts given to `predict` go through it.
`text_id` names a text by its content; it ignores how the text is spaced, so that the same sentence in two files, or in
the corpus and in a test set, has one id. Case is kept: "Polish" and "polish" are two texts.
About 150,000 short documents a second on one core. Not for
source code or verse in which spaces carry meaning: set `collapse_whitespace: false`.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

ID_BYTES = 16
"""Two of 10^12 different documents share an id with a probability of 10^-15."""

_CONTROLS: dict[int, str | None] = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0xFEFF))
_CONTROLS |= {0x09: " ", 0x0A: "\n", 0x0B: "\n", 0x0C: "\n", 0x85: "\n"}
_NEEDS_TRANSLATE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\t]")
_SPACES = re.compile(r"[^\S\n]{2,}|[^\S\n ]")
_BLANK_LINES = re.compile(r"\n{3,}")
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(text: str, *, collapse_whitespace: bool = True) -> str:
    """`text` in Unicode NFC without control characters and byte order marks.

    Args:
        text: any string without lone surrogates (see `is_unicode`).
        collapse_whitespace: runs of spaces and tabs become one space, three and more line ends become two, and
            spaces beside line ends go. Without it only carriage returns are taken off.

    Returns:
        A text for which `clean(clean(text)) == clean(text)`; possibly empty.
    """
    plain = text.replace("\n", "").isprintable()  # no control, no space but U+0020: 1 ns a character; a pattern, 20
    if not plain:
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if _NEEDS_TRANSLATE.search(text):
            text = text.translate(_CONTROLS if collapse_whitespace else {**_CONTROLS, 0x09: "\t"})
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if not collapse_whitespace:
        return text.strip()
    if "  " in text or (not plain and _SPACES.search(text)):
        text = _SPACES.sub(" ", text)
    if "\n" in text:
        text = text.replace(" \n", "\n").replace("\n ", "\n")
        if "\n\n\n" in text:
            text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def is_unicode(text: str) -> bool:
    """Whether `text` can be written as UTF-8; a JSON escape such as `\\ud800` makes a string that cannot."""
    return text.isascii() or _SURROGATES.search(text) is None


def text_digest(text: str) -> bytes:
    """The 16 bytes that name a text: SHA-256 over its cleaned form with every run of whitespace as one space."""
    return cleaned_digest(clean(text))


def cleaned_digest(text: str) -> bytes:
    """`text_digest` of a text that went through `clean` already, with or without collapsed whitespace."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:ID_BYTES]


def collapsed_digest(text: str) -> bytes:
    """`cleaned_digest` of a text that `clean` left with collapsed whitespace, in a fifth of the time: it has single
    spaces, and one or two line ends in a row."""
    if "\n" in text:
        text = text.replace("\n\n", "\n").replace("\n", " ")
    return hashlib.sha256(text.encode()).digest()[:ID_BYTES]


def text_id(text: str) -> str:
    """`text_digest` as 32 hex characters: the column `id` of tasks and corpora."""
    return text_digest(text).hex()


def unit_interval(digest: bytes, purpose: str) -> float:
    """A number in [0, 1) that depends on the text and `purpose` alone: splits and samples that need no state.

    Two purposes give independent numbers, so that the corpus split does not follow the task split.
    """
    mixed = hashlib.blake2b(digest, digest_size=8, person=purpose.encode()).digest()
    return int.from_bytes(mixed, "big") / 2.0**64
