"""Length in characters, not words: it means the same in languages without spaces. 100 MB/s and more."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.segments import Bools
from infra.journal.config import FrozenConfig


class MinCharacters(FrozenConfig):
    """Keeps texts of at least `characters`."""

    name: Literal["min_characters"] = "min_characters"
    characters: int = Field(..., ge=1, description="shortest text kept, characters")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts are long enough, (N,)."""
        return batch.num_characters >= self.characters


class MaxCharacters(FrozenConfig):
    """Keeps texts of at most `characters`."""

    name: Literal["max_characters"] = "max_characters"
    characters: int = Field(..., ge=1, description="longest text kept, characters")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts are short enough, (N,)."""
        return batch.num_characters <= self.characters
