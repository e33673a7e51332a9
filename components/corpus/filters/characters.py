"""Length in characters, not words: it means the same in languages without spaces."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.journal.config import FrozenConfig


class MinCharacters(FrozenConfig):
    """Keeps texts of at least `characters`."""

    name: Literal["min_characters"] = "min_characters"
    characters: int = Field(..., ge=1, description="shortest text kept, characters")

    def keeps(self, text: str) -> bool:
        """Whether `text` is long enough."""
        return len(text) >= self.characters


class MaxCharacters(FrozenConfig):
    """Keeps texts of at most `characters`."""

    name: Literal["max_characters"] = "max_characters"
    characters: int = Field(..., ge=1, description="longest text kept, characters")

    def keeps(self, text: str) -> bool:
        """Whether `text` is short enough."""
        return len(text) <= self.characters
