"""Share of letters, for tables of numbers, markup and binary noise read as text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.journal.config import FrozenConfig


class MinLetterFraction(FrozenConfig):
    """Keeps texts of which at least `fraction` of the characters that are not whitespace are letters, in any script."""

    name: Literal["min_letter_fraction"] = "min_letter_fraction"
    fraction: float = Field(..., gt=0, le=1, description="smallest share of letters kept, 0 to 1")

    def keeps(self, text: str) -> bool:
        """Whether `text` has enough letters."""
        visible = "".join(text.split())
        return bool(visible) and sum(map(str.isalpha, visible)) >= self.fraction * len(visible)
