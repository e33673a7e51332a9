"""Reads a task's labels and splits as columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from components.prompting.demonstrations import Rows
from infra.errors import DataError


def read_labels(folder: Path) -> list[str]:
    """The task's label names, sorted."""
    labels: list[str] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    return labels


def read_rows(folder: Path, split: str) -> Rows:
    """One split of the task, in its order (by id)."""
    table = pq.read_table(folder / f"{split}.parquet", columns=["id", "text", "label"])
    ids, texts, labels = (table.column(name).to_pylist() for name in ("id", "text", "label"))
    return Rows(ids=ids, texts=texts, labels=labels)


def require_rows(rows: Rows, split: str, key: str) -> Rows:
    """`rows`, if there are any.

    Raises:
        DataError: there are none.
    """
    if not len(rows):
        raise DataError(f"task: the {split} split has no rows; give more labelled data, or a file for {key}")
    return rows
