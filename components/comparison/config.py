"""What a user may say about the comparison."""

from __future__ import annotations

from pydantic import Field

from infra.journal.config import FrozenConfig


class CompareConfig(FrozenConfig):
    """The baselines and the statistics of the comparison."""

    seed: int = Field(0, ge=0, description="of the bootstrap intervals")
    tfidf_max_features: int = Field(50_000, ge=100, description="n-grams of the TF-IDF baseline, by frequency")
    tfidf_inverse_regularisation: float = Field(10.0, gt=0, description="C of its logistic regression")
    tfidf_max_characters: int = Field(2_000, ge=16, description="characters of a text that TF-IDF reads")
