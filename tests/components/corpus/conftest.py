"""Small files in every format, and a step's context made by hand."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.journal.step import StepContext
from infra.storage.raw import RawFile, resolve
from infra.tracking.client import StepTracker


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd}


def jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def write(path: Path, data: bytes) -> RawFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return resolve(str(path), None, "test")[0]


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., StepContext]:
    def make(name: str, **raw: tuple[RawFile, ...]) -> StepContext:
        output, work = tmp_path / name / "output", tmp_path / name / "work"
        output.mkdir(parents=True)
        work.mkdir()
        return StepContext(step=name, key="0" * 32, output=output, work=work, raw=raw, tracker=StepTracker(step=name))

    return make


@pytest.fixture
def files() -> SimpleNamespace:
    """Helpers that write files."""
    return SimpleNamespace(compress=COMPRESS, jsonl=jsonl, parquet=parquet, write=write)
