"""Token shards and process runner of the pretraining tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    """A module beside this file: `--import-mode=importlib` puts no test folder on the path."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"pretraining_tests_{name}", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_trainings() -> ModuleType:
    """The module `processes`."""
    return _load("processes")


@pytest.fixture(scope="session")
def packed() -> ModuleType:
    """The module `packed`."""
    return _load("packed")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer/` and `token_shards/` of 1,500 glosses: vocabulary 512, sequences of 32."""
    root = tmp_path_factory.mktemp("tiny")
    _load("data").make_shards(root)
    return root


@pytest.fixture(scope="session")
def marked_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the last two tokens of each document as targets."""
    root = tmp_path_factory.mktemp("marked")
    _load("data").make_shards(root, num_documents=400, marked=True)
    return root
