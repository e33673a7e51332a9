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
        return StepContext(
            step=name,
            key="0" * 32,
            output=output,
            work=work,
            raw=raw,
            units=tmp_path / "units",
            tracker=StepTracker(step=name),
        )

    return make


def uneven(folder: Path) -> dict[str, tuple[RawFile, int]]:
    """Labelled files with good, blank and bad rows, and how many rows each has, counted without our readers.

    Blank lines count as rows, the header of a CSV file does not, and a quoted field may span lines.
    """
    good = [json.dumps({"text": f"line {i}", "label": str(i % 2)}) for i in range(60)]
    lines = [*good, "", "{not json", "[1]", '{"text": "no label"}', "", good[0]]
    table = [*(f"record {i},{i % 2}" for i in range(50)), "", '"two\nlines",1', "too,many,fields", "一,0"]
    quoted = sum(record.count("\n") for record in table)
    rows = [{"text": None if i % 7 == 0 else f"row {i}", "label": str(i % 2)} for i in range(2100)]
    contents = {
        "a.jsonl.gz": (gzip.compress("\n".join(lines).encode()), len(lines)),
        "b.csv": (("text,label\n" + "\n".join(table) + "\n").encode(), len(table)),
        "c.parquet": (parquet(rows), len(rows)),
        "d.jsonl.zst": (zstd(("\n".join(lines[:5]) + "\n").encode()), 5),
    }
    assert contents["b.csv"][0].count(b"\n") - 1 - quoted == len(table)
    assert gzip.decompress(contents["a.jsonl.gz"][0]).count(b"\n") + 1 == len(lines)
    assert pq.read_metadata(io.BytesIO(contents["c.parquet"][0])).num_rows == len(rows)
    return {name: (write(folder / name, data), count) for name, (data, count) in contents.items()}


@pytest.fixture
def files() -> SimpleNamespace:
    """Helpers that write files."""
    return SimpleNamespace(compress=COMPRESS, jsonl=jsonl, parquet=parquet, write=write, uneven=uneven)
