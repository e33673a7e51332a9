"""Share of letters, for tables of numbers, markup and binary noise read as text."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.segments import Bools
from infra.journal.config import FrozenConfig


class MinLetterFraction(FrozenConfig):
    """Keeps texts of which at least `fraction` of the characters that are not whitespace are letters, in any script."""

    name: Literal["min_letter_fraction"] = "min_letter_fraction"
    fraction: float = Field(..., gt=0, le=1, description="smallest share of letters kept, 0 to 1")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts have enough letters, (N,)."""
        return (batch.num_visible > 0) & (batch.num_letters >= self.fraction * batch.num_visible)
