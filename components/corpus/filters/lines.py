"""Repeated lines, after Gopher (Rae et al. 2021, arXiv:2112.11446, table A1): menus, headers, boilerplate.

This one rule alone; `gopher_repetition` has it with all the others of the table.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.segments import Bools
from infra.journal.config import FrozenConfig


class MaxDuplicateLineFraction(FrozenConfig):
    """Keeps texts of which at most `fraction` of the lines that are not blank repeat an earlier line."""

    name: Literal["max_duplicate_line_fraction"] = "max_duplicate_line_fraction"
    fraction: float = Field(0.3, ge=0, lt=1, description="largest share of repeated lines kept, 0 to 1")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts have few enough repeated lines, (N,)."""
        repeated = batch.lines.where(batch.repeats(batch.lines))
        return batch.count(repeated) <= self.fraction * batch.num_lines
