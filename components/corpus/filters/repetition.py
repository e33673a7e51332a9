"""One phrase over and over, in the spirit of Gopher's repeated n-grams, on characters, so that it needs no words.

In any text the share of repeated grams grows with its length, so the default of 0.7 is meant to find only texts that
are mostly repetition. It holds a set of all grams: 90 bytes a character while a text is looked at.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.journal.config import FrozenConfig


class MaxRepeatedGramFraction(FrozenConfig):
    """Keeps texts of which at most `fraction` of the character grams repeat an earlier one."""

    name: Literal["max_repeated_gram_fraction"] = "max_repeated_gram_fraction"
    fraction: float = Field(0.7, ge=0, lt=1, description="largest share of repeated grams kept, 0 to 1")
    gram_characters: int = Field(10, ge=2, le=100, description="length of a gram, characters")

    def keeps(self, text: str) -> bool:
        """Whether few enough grams repeat."""
        num_grams = len(text) - self.gram_characters + 1
        if num_grams < 2:
            return True
        distinct = len({text[start : start + self.gram_characters] for start in range(num_grams)})
        return num_grams - distinct <= self.fraction * num_grams
