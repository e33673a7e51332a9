"""Repeated lines, after Gopher (Rae et al. 2021, arXiv:2112.11446, table A1): menus, headers, boilerplate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from infra.journal.config import FrozenConfig


class MaxDuplicateLineFraction(FrozenConfig):
    """Keeps texts of which at most `fraction` of the lines that are not empty repeat an earlier line."""

    name: Literal["max_duplicate_line_fraction"] = "max_duplicate_line_fraction"
    fraction: float = Field(0.3, ge=0, lt=1, description="largest share of repeated lines kept, 0 to 1")

    def keeps(self, text: str) -> bool:
        """Whether few enough lines repeat."""
        lines = [line for line in text.split("\n") if line]
        return not lines or (len(lines) - len(set(lines))) <= self.fraction * len(lines)
