"""Hostile files end in counted rejects or in one clear line, in bounded memory and time."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.corpus import lines
from components.corpus.readers import read_batches, read_rows
from components.corpus.rows import Columns, ReadLimits
from components.corpus.units import Unit, units_of
from infra.errors import DataError, UserError
from infra.storage.raw import RawFile, resolve
from tests.components.corpus.hostile import HOSTILE, Hostile

TEXT = Columns()
LIMITS = ReadLimits(max_document_bytes=8 << 20, max_decompressed_bytes=16 << 20)


def counted(unit: Unit, columns: Columns = TEXT, document: Any = "line", limits: ReadLimits = LIMITS) -> Any:
    found: Counter[str] = Counter()
    last = 0
    for batch in read_batches(unit, columns, limits, document):
        assert batch.numbers == list(range(last + 1, last + 1 + len(batch)))
        assert (
            len({len(column) for column in (batch.texts, batch.ids, batch.licenses, batch.labels, batch.reasons)}) == 1
        )
        found.update(reason or "" for reason in batch.reasons)
        "".join(batch.texts).encode()  # all of it can be written
        last += len(batch)
    return dict(found)


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: ascii(hostile.name))
def test_a_hostile_file_is_counted_rejects_or_one_line(
    hostile: Hostile, tmp_path: Path, files: SimpleNamespace
) -> None:
    file = files.write(tmp_path / hostile.name, hostile.make())
    columns = Columns(id="id") if hostile.name == "ids.jsonl" else Columns()
    if hostile.error is None:
        assert counted(Unit(file=file), columns, hostile.document) == hostile.reasons
        return
    with pytest.raises(DataError, match=hostile.error) as refused:
        counted(Unit(file=file), columns, hostile.document)
    assert "\n" not in str(refused.value) and Path(hostile.name.split("\n")[-1]).name in str(refused.value)


def test_a_missing_column_is_named(tmp_path: Path, files: SimpleNamespace) -> None:
    for name in ("a.parquet", "a.csv"):
        data = files.parquet([{"text": "x"}]) if name == "a.parquet" else b"text\nx\n"
        with pytest.raises(DataError, match="no column nr and no terms; its columns are text"):
            counted(Unit(file=files.write(tmp_path / name, data)), Columns(id="nr", license="terms"))


LONG: dict[str, tuple[bytes, bytes, dict[str, int], str]] = {
    "a.txt": (b"a\n", b"\nb\n", {"": 2, "document_too_long": 1}, "line"),
    "a.txt.gz": (b"a\n", b"\nb\n", {"": 2, "document_too_long": 1}, "line"),
    "a.txt.zst": (b"a\n", b"", {"": 1, "document_too_long": 1}, "line"),
    "a.jsonl": (b'{"text": "a"}\n{"text": "', b'"}\n{"text": "b"}', {"": 2, "document_too_long": 1}, "line"),
    "a.csv": (b'text,n\na,1\n"""\n', b'\n,"",",2\nb,3\n', {"": 2, "document_too_long": 1}, "line"),
    "b.txt": (b"a\na\n\nb\n", b"\nb\n\nc", {"": 2, "document_too_long": 1}, "paragraph"),
    "c.txt": (b"a", b"a", {"document_too_long": 1}, "file"),
}


@pytest.mark.parametrize("num_bytes", [99, 1_500_000])
@pytest.mark.parametrize("name", LONG)
def test_a_document_that_is_too_long_is_skipped_and_the_next_is_read(
    name: str, num_bytes: int, tmp_path: Path, files: SimpleNamespace
) -> None:
    """Within one chunk and over several; as a line, and as a text of many lines."""
    start, end, reasons, document = LONG[name]
    ending = name[5:] if name.startswith("a.txt.") else ""
    fillings = [b"x" * num_bytes]
    if name in ("a.csv", "b.txt", "c.txt"):
        fillings += [b"xxx\n" * (num_bytes // 4) + b"x", b'"",\n' * (num_bytes // 4) + b"x"]
    for filling in fillings:
        file = files.write(tmp_path / name, files.compress[ending](start + filling + end))
        limits = ReadLimits(max_document_bytes=num_bytes // 2)
        assert counted(Unit(file=file), Columns(), document, limits) == reasons
        good = [row.text for row in read_rows(Unit(file=file), Columns(), limits, document) if row.reason is None]  # type: ignore[arg-type]
        assert "".join(good) in ("ab", "a", "a\nac", "")
        whole = counted(Unit(file=file), Columns(), document, ReadLimits(max_document_bytes=2 * num_bytes + 99))
        assert whole == {"": sum(reasons.values())}


def test_a_long_value_of_a_table_is_a_reject(tmp_path: Path, files: SimpleNamespace) -> None:
    rows = [{"text": "a"}, {"text": "é" * 51}, {"text": "é" * 50}, {"text": None}]
    file = files.write(tmp_path / "a.parquet", files.parquet(rows))
    expected = {"": 2, "document_too_long": 1, "text_missing": 1}
    assert counted(Unit(file=file), limits=ReadLimits(max_document_bytes=100)) == expected


def test_a_line_of_200_mb_takes_no_memory(tmp_path: Path) -> None:
    """Peak memory of a process that reads it as a line, a paragraph, a file, an object, a record, and compressed."""
    program = """
        import gzip, json, resource, sys
        from pathlib import Path
        import pyarrow as pa
        from components.corpus.readers import read_batches
        from components.corpus.rows import Columns, ReadLimits
        from components.corpus.units import Unit, units_of
        from infra.storage.raw import resolve

        folder, rows = Path(sys.argv[1]), {}
        starts = {"a.txt": b"", "a.jsonl": b'{"text": "', "a.csv": b'text\\n"', "a.txt.gz": b"", "a.jsonl.zst": b"{"}
        for name, start in starts.items():
            with (folder / name).open("wb") as raw:
                stream = gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) if name.endswith("gz") else raw
                stream = pa.CompressedOutputStream(pa.PythonFile(raw, "w"), "zstd") if name.endswith("zst") else stream
                stream.write(start)
                for _ in range(200):
                    stream.write(b"x" * 1_000_000)
                stream.write(b'"\\n' if name == "a.csv" else b"\\n")
                if stream is not raw:
                    stream.close()
        limits = ReadLimits(max_document_bytes=8 << 20)
        def read(name, document="line"):
            (file,) = resolve(str(folder / name), None, "test")
            for unit in units_of(file, document):
                for batch in read_batches(unit, Columns(), limits, document):
                    rows[f"{name} {document}"] = rows.get(f"{name} {document}", []) + batch.reasons
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for name in starts:
            read(name)
        for document in ("paragraph", "file"):
            read("a.txt", document)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"rows": rows, "grown_kb": grown}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert len(told["rows"]) == 7 and set(map(tuple, told["rows"].values())) == {("document_too_long",)}, told
    assert told["grown_kb"] < 64 << 10, told


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b'{"text": "more"}\n')


def shrink(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("change", [grow, shrink, Path.unlink], ids=["grows", "is cut", "vanishes"])
@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.parquet"])
def test_a_file_that_changes_while_it_is_read_is_one_clear_error(
    name: str, is_cut: bool, change: Callable[[Path], None], tmp_path: Path, files: SimpleNamespace
) -> None:
    rows = [{"text": f"{i} {os.urandom(500).hex()}"} for i in range(3000)]
    data = files.parquet(rows) if name == "a.parquet" else files.jsonl(rows)
    file = files.write(tmp_path / name, files.compress[".gz" if name.endswith(".gz") else ""](data))
    unit = units_of(file, unit_bytes=1 << 21 if is_cut else 1 << 30)[0]
    found = read_rows(unit, Columns())
    next(found)
    change(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: has changed since the run was planned"):
        list(found)


def test_what_is_no_file_is_neither_opened_nor_waited_for(tmp_path: Path, files: SimpleNamespace) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="is a pipe, a socket or a device, not a file"):
        resolve(str(tmp_path / "pipe.jsonl"), None, "x")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="holds no file with a known ending"):
        resolve(str(tmp_path / "folder.jsonl"), None, "x")
    file: RawFile = files.write(tmp_path / "a.jsonl", b'{"text": "x"}\n')
    for pattern in (tmp_path, tmp_path / "*.jsonl", tmp_path / "**" / "*.jsonl"):
        assert resolve(str(pattern), None, "x") == (file,)
    (tmp_path / "a.jsonl").unlink()
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="it is no file any more"):
        counted(Unit(file=file))


def table_files() -> dict[str, bytes]:
    """Small files of 300 rows in three groups or batches."""
    table = pa.table({"text": [f"text {i} " * 9 for i in range(300)], "id": range(300)})
    found = {}
    for name, make, compression in (
        ("a.arrow", pa.ipc.new_file, None),
        ("b.arrow", pa.ipc.new_file, "zstd"),
        ("c.arrow", pa.ipc.new_stream, "lz4"),
    ):
        sink = io.BytesIO()
        with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, max_chunksize=100)
        found[name] = sink.getvalue()
    for name, options in (("d.parquet", {}), ("e.parquet", {"compression": "zstd", "use_dictionary": False})):
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=100, **options)
        found[name] = sink.getvalue()
    return found


def test_no_flipped_byte_of_a_table_is_more_than_one_clear_error(tmp_path: Path, files: SimpleNamespace) -> None:
    """Of 400 files, most of them damaged in their metadata: read, or refused as the user's data."""
    chance, bases, outcomes = random.Random(0), table_files(), Counter[str]()
    for _ in range(400):
        name, data = chance.choice(list(bases.items()))
        damaged = bytearray(data)
        for _ in range(chance.choice([1, 1, 2, 8])):
            place = chance.choice([chance.randrange(len(data)), chance.randrange(len(data) - 900, len(data))])
            damaged[place] = chance.choice([0, 255, 127, 128, damaged[place] ^ (1 << chance.randrange(8))])
        try:
            for unit in units_of(files.write(tmp_path / name, bytes(damaged)), unit_bytes=500):
                counted(unit, Columns(id="id"))
            outcomes["read"] += 1
        except DataError as error:
            assert "\n" not in str(error) and name in str(error)
            outcomes["refused"] += 1
    assert outcomes["refused"] > 100 and outcomes["read"] > 50, outcomes


@pytest.mark.parametrize("chunk_bytes", [1, 7, 64])
def test_csv_in_blocks_is_what_the_csv_module_reads_at_once(
    chunk_bytes: int, tmp_path: Path, files: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quotes, line ends and stray quotes in any order, cut into blocks anywhere."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", chunk_bytes)
    chance, num_compared = random.Random(1), 0
    for _ in range(300):
        pieces = chance.choices(["a", "é", ",", "\n", '"', '""', '"x\ny"', '"p",q\n', "r,s\n", "\r\n"], k=30)
        text = "text,n\n" + "".join(pieces)
        expected: list[list[str] | None] = []
        reader = csv.reader((line + "\n" for line in text.removesuffix("\n").split("\n")), strict=True)
        file = files.write(tmp_path / "a.csv", text.encode())
        while True:
            try:
                expected.extend(reader)
                break
            except csv.Error:
                expected.append(None)
        if _ends_open(text):
            with pytest.raises(DataError, match="does not close"):
                list(read_rows(Unit(file=file), TEXT))
            continue
        kinds = [
            "not_csv" if r is None else "empty_text" if not r else None if len(r) == 2 else "wrong_number_of_fields"
            for r in expected[1:]
        ]
        found = list(read_rows(Unit(file=file), TEXT))
        assert [row.reason for row in found] == kinds, text
        assert [row.text for row in found if row.reason is None] == [r[0] for r in expected[1:] if r and len(r) == 2]
        num_compared += 1
    assert num_compared > 100


def _ends_open(text: str) -> bool:
    """Whether the `csv` module meets the end of the text within quotes."""
    reader = csv.reader((line + "\n" for line in text.removesuffix("\n").split("\n")), strict=True)
    while True:
        try:
            if next(reader, None) is None:
                return False
        except csv.Error as error:
            if "unexpected end" in str(error):
                return True
