"""Token shards and process runner of the pretraining tests."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(name: str) -> ModuleType:
    """A module of this folder."""
    return importlib.import_module(f"tests.components.pretraining.{name}")


@pytest.fixture(scope="session")
def run_trainings() -> ModuleType:
    """The module `processes`."""
    return _load("processes")


@pytest.fixture(scope="session")
def make_shards() -> Any:
    """`data.make_shards`."""
    return _load("data").make_shards


@pytest.fixture(scope="session")
def packed() -> ModuleType:
    """The module `packed`."""
    return _load("packed")


@pytest.fixture(scope="session")
def plain() -> ModuleType:
    """The module `plain_loop`."""
    return _load("plain_loop")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer/` and `token_shards/` of 1,500 glosses: vocabulary 512, sequences of 32."""
    root = tmp_path_factory.mktemp("tiny")
    _load("data").make_shards(root)
    return root


@pytest.fixture(scope="session")
def text_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with documents of 1 to 7 sentences: vocabulary 1024, sequences of 128."""
    root = tmp_path_factory.mktemp("text")
    _load("data").make_shards(root, num_documents=3000, sequence_length=128, vocab_size=1024, sentences=True)
    return root


@pytest.fixture(scope="session")
def marked_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the last two tokens of each document as targets."""
    root = tmp_path_factory.mktemp("marked")
    _load("data").make_shards(root, num_documents=400, marked=True)
    return root
