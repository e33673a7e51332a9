"""Folders of tokenizers in the styles of released ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def make_style(tmp_path: Path) -> Callable[[str], Path]:
    """Makes the folder of a style: `bert`, `gpt2`, `llama` or `t5`."""
    styles = importlib.import_module("tests.components.tokenization.styles").STYLES

    def make(name: str) -> Path:
        folder: Path = styles[name](tmp_path / name)
        return folder

    return make
