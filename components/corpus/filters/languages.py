"""The language of a text, as FineWeb chooses its English pages (Penedo et al. 2024, arXiv:2406.17557, section 3.3)."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from components.corpus.filters.batch import TextBatch
from components.corpus.filters.segments import Bools
from infra.journal.config import FrozenConfig


class Language(FrozenConfig):
    """Keeps texts in one of the languages `codes`; how sure that is, and for how short texts, is in `language.py`."""

    name: Literal["language"] = "language"
    codes: tuple[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")], ...] = Field(
        ..., min_length=1, description="ISO 639 codes: en, zh (simplified and traditional), de, ...; und is no language"
    )
    min_probability: float = Field(0.65, ge=0, le=1, description="smallest probability kept, 0 to 1")

    def keeps(self, batch: TextBatch) -> Bools:
        """Which texts are, surely enough, in one of the languages, (N,)."""
        codes, probabilities = batch.languages
        return np.isin(np.array(codes, dtype="<U3"), self.codes) & (probabilities >= self.min_probability)
