"""Fixtures of the tests of the infrastructure."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.storage.store import Store


@pytest.fixture
def machines(s3_uri: str, tmp_path: Path) -> tuple[Store, Store]:
    """One root on an object store, as two machines see it."""
    return Store.open(s3_uri, str(tmp_path / "a")), Store.open(s3_uri, str(tmp_path / "b"))
