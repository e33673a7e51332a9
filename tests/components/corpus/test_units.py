"""Units of a file have each of its rows once, wherever the cuts lie."""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.corpus import lines, streams
from components.corpus.readers import read_batches, read_rows
from components.corpus.rows import Columns
from components.corpus.units import Unit, units_of
from infra.errors import DataError
from infra.storage.raw import RawFile, resolve

CONTENTS = {
    "ends": b"a\nbb\n\nccc\n",
    "no final line feed": b"a\nbb\n\nccc",
    "carriage returns": b"a\r\nbb\r\n\r\nccc\r\n",
    "empty lines": b"\n\n\na\n\n",
    "several bytes a sign": "中文\né\n🌹 rose\n".encode(),
    "byte order mark": "\ufeff中\nb\n".encode(),
    "not UTF-8": b"a\n\xff\xfe\nb\n",
    "one line": b"abc",
}


def texts(*units: Unit) -> list[str]:
    return [row.text for unit in units for row in read_rows(unit, Columns())]


@pytest.mark.parametrize("chunk_bytes", [1, 2, 1 << 20])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_line_is_in_the_range_in_which_it_begins(
    content: bytes, chunk_bytes: int, tmp_path: Path, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way to cut a small file in three."""
    monkeypatch.setattr(streams, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
    file = files.write(tmp_path / "a.txt", content)
    whole = content.decode(errors="backslashreplace").removeprefix("\ufeff").removesuffix("\n").split("\n")
    assert texts(Unit(file=file)) == whole
    size = len(content)
    for first in range(size + 1):
        for second in range(first, size + 1):
            cuts = [0, first, second, size]
            parts = [Unit(file=file, start=start, end=end) for start, end in itertools.pairwise(cuts) if start < end]
            assert texts(*parts) == whole, cuts
            starts = [0, *(place + 1 for place, byte in enumerate(content[:-1]) if byte == ord("\n"))]
            for part in parts:
                assert part.end is not None
                assert len(texts(part)) == sum(part.start <= place < part.end for place in starts)


def test_ranges_follow_from_the_size_alone(tmp_path: Path, files: SimpleNamespace) -> None:
    for name in ("a.txt", "a.jsonl"):
        file = files.write(tmp_path / name, b'{"text": "x"}\n' * 10)
        units = units_of(file, unit_bytes=60)
        assert [(unit.start, unit.end) for unit in units] == [(0, 60), (60, 120), (120, 140)]
        gone = dataclasses.replace(file, path="nowhere")
        assert [(unit.start, unit.end) for unit in units_of(gone, unit_bytes=60)] == [(0, 60), (60, 120), (120, 140)]
        assert len(texts(*units)) == 10
        numbers = [row.number for unit in units for row in read_rows(unit, Columns())]
        assert numbers[:2] == [1, 2] and numbers.count(1) == 3  # from 1 in each


@pytest.mark.parametrize(("name", "ending"), [("a.csv", ""), ("a.txt.gz", ".gz"), ("a.jsonl.zst", ".zst")])
def test_what_cannot_be_cut_is_one_unit(name: str, ending: str, tmp_path: Path, files: SimpleNamespace) -> None:
    file = files.write(tmp_path / name, files.compress[ending](b"text\nx\n" * 9))
    assert units_of(file, unit_bytes=5) == (Unit(file=file),)


def test_text_whose_documents_are_not_lines_is_one_unit(tmp_path: Path, files: SimpleNamespace) -> None:
    file = files.write(tmp_path / "a.txt", b"a\n\nb\n" * 9)
    assert units_of(file, "paragraph", 5) == units_of(file, "file", 5) == (Unit(file=file),)


def table(num_rows: int) -> pa.Table:
    return pa.table({"id": range(num_rows), "text": [f"text {i} {'x' * 100}" for i in range(num_rows)]})


def parquet(num_rows: int, group_rows: int) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(num_rows), sink, row_group_size=group_rows, compression="none")
    return sink.getvalue()


def arrow(num_rows: int, batch_rows: int, *, stream: bool = False) -> bytes:
    sink = io.BytesIO()
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, table(1).schema) as writer:
        writer.write_table(table(num_rows), max_chunksize=batch_rows)
    return sink.getvalue()


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_tables_are_cut_between_groups_or_batches(name: str, tmp_path: Path, files: SimpleNamespace) -> None:
    make = parquet if name == "a.parquet" else arrow
    file = files.write(tmp_path / name, make(1000, 100))
    units = units_of(file, unit_bytes=30_000)
    cuts = [(unit.start, unit.end) for unit in units]
    assert cuts == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    batches = [batch for unit in units for batch in read_batches(unit, Columns(id="id"))]
    assert [id_ for batch in batches for id_ in batch.ids] == [str(i) for i in range(1000)]
    assert [text for batch in batches for text in batch.texts] == table(1000).column("text").to_pylist()
    assert units_of(file) == (Unit(file=file),)


def test_an_arrow_stream_and_a_file_without_a_footer_are_one_unit(tmp_path: Path, files: SimpleNamespace) -> None:
    """Who reads it tells what is wrong with it."""
    file = files.write(tmp_path / "a.arrow", arrow(100, 10, stream=True))
    assert units_of(file, unit_bytes=100) == (Unit(file=file),) and len(texts(Unit(file=file))) == 100
    for name, data in (("b.arrow", arrow(100, 10)[:-9]), ("c.parquet", parquet(100, 10)[:-9])):
        damaged = files.write(tmp_path / name, data)
        assert units_of(damaged, unit_bytes=100) == (Unit(file=damaged),)
        with pytest.raises(DataError, match="damaged"):
            texts(Unit(file=damaged))


def settled(path: Path, data: bytes) -> RawFile:
    """Planned long after it was written, as the clock of the file system says."""
    path.write_bytes(data)
    (file,) = resolve(str(path), None, "test")
    return dataclasses.replace(file, mtime_ns=path.stat().st_mtime_ns)


def test_a_part_is_not_read_from_a_file_that_changed(tmp_path: Path) -> None:
    file = settled(tmp_path / "a.txt", b"one\ntwo\n")
    part = Unit(file=file, start=4, end=8)
    assert texts(part) == ["two"]
    os.utime(tmp_path / "a.txt", ns=(0, 0))  # the same bytes on another machine: known by their digest
    assert texts(part) == ["two"]
    (tmp_path / "a.txt").write_bytes(b"one\nTWO\n")
    with pytest.raises(DataError, match="has changed since the run was planned"):
        texts(part)
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"has changed since the run was planned \(14 bytes, 8 then\)"):
        texts(part)


def test_a_part_of_a_settled_file_is_read_without_reading_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settled(tmp_path / "a.txt", b"one\ntwo\n")
    monkeypatch.setattr(streams, "sha256", lambda path: pytest.fail("read for its digest"))
    assert texts(Unit(file=file, start=0, end=4)) == ["one"]


def test_the_time_of_a_file_that_was_just_written_proves_nothing(tmp_path: Path, files: SimpleNamespace) -> None:
    assert files.write(tmp_path / "a.txt", b"x").mtime_ns is None
    time.sleep(2.1)
    (file,) = resolve(str(tmp_path / "a.txt"), None, "test")
    assert file.mtime_ns == (tmp_path / "a.txt").stat().st_mtime_ns
