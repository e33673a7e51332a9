"""How text falls into words before pieces are learned, the same for the three kinds of tokenizer.

Every Han character is a word of its own, as in BERT's Chinese vocabulary: text without spaces would else be words of 40
characters, and the same phrase would be cut differently by what stands around it. That makes a token of each common
character (3 bytes), however large the vocabulary: on 10 MB of Tang and Song poems byte-level BPE learns 8,731 tokens
and no more, of 2.89 bytes. `with_han_words` lets it learn words: 3.20 bytes a token at 8,192 tokens, 3.67 at 32,768.

Runs of letters
without spaces in other scripts (Thai, Kana, DNA) and runs of symbols or white space end after 32 characters, numbers
after 3 digits; a space before them is not counted. So no line is too long: 10 MB
without a space are encoded in 3 to 5 s, 1 MB in 0.3.
"""

from __future__ import annotations

_LETTERS = r"[\p{L}\p{M}&&[^\p{Han}]]{1,32}"
_SYMBOLS = r"[^\s\p{L}\p{M}\p{N}]{1,32}"
_NUMBERS = r"\p{N}{1,3}"

WORDS_WITH_SPACES = (
    rf"\p{{Han}}|'(?:[sdmt]|ll|ve|re)| ?{_LETTERS}| ?{_NUMBERS}| ?{_SYMBOLS}|\s{{1,32}}(?!\S)|\s{{1,32}}"
)
"""Covers every character, so that bytes can be put together again; a space belongs to the word that follows it."""

WORDS = rf"\p{{Han}}|{_LETTERS}|{_NUMBERS}|[^\s\p{{L}}\p{{M}}\p{{N}}]"
"""Words, and single symbols; whitespace between them is dropped."""

MARKED_WORDS = rf"\p{{Han}}|▁?{_LETTERS}|▁?{_NUMBERS}|▁?[^\s\p{{L}}\p{{M}}\p{{N}}▁]{{1,32}}|▁"
"""Words in which ▁ (U+2581) stands for the space before them."""


def with_han_words(pattern: str) -> str:
    """One of the patterns above, with runs of up to 32 Han characters as words, of which pieces are learned."""
    return pattern.replace(r"\p{Han}|", r"\p{Han}{1,32}|", 1)
