"""The module `by_hand`, and token shards with their objective."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from components.pretraining.batches import Batch, make_batch, make_objective
from components.pretraining.config import PretrainConfig
from components.tokenization.shards import TokenShards
from components.tokenization.words import WordTable


@pytest.fixture(scope="session")
def by_hand() -> ModuleType:
    """Helpers."""
    return importlib.import_module("tests.components.pretraining.objectives.by_hand")


@pytest.fixture(scope="session")
def words(by_hand: ModuleType) -> WordTable:
    """`by_hand.WORDS`."""
    found: WordTable = by_hand.WORDS
    return found


@pytest.fixture(scope="session")
def text_batch(text_data: Path) -> Callable[..., Batch]:
    """Makes a batch of an objective from text of 128 tokens a sequence."""
    shards = TokenShards(text_data / "token_shards", "train")

    def made(objective: str, indices: Any, epoch: int = 0, *, validation: bool = False, **more: Any) -> Batch:
        config = PretrainConfig.model_validate({"objective": objective, "sequence_length": 128, **more})
        numbers_B = np.asarray(indices)
        return make_batch(
            shards,
            make_objective(config, shards, text_data / "tokenizer"),
            numbers_B,
            np.full_like(numbers_B, epoch),
            validation=validation,
        )

    return made
