"""Readers give every row of every format, mark the bad ones, and refuse bad files by name."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from components.corpus.readers import read_rows
from components.corpus.rows import Columns
from components.corpus.streams import CHUNK_BYTES
from components.corpus.units import Unit
from infra.errors import DataError
from infra.storage.raw import RawFile

TEXT, LABELLED = Columns(), Columns(label="label")
TEXTS = ["one", "zwei, drei", '三 "四"', "five\u2028still five"]


def arrow(texts: list[str], make: Any, compression: str | None = None) -> bytes:
    """A file of two record batches, the text a dictionary, with a column that nobody asks for."""
    sink = io.BytesIO()
    table = pa.table({"label": ["a"] * len(texts), "text": pa.array(texts).dictionary_encode()})
    with make(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=3)
    return sink.getvalue()


def contents(files: SimpleNamespace) -> dict[str, bytes]:
    quoted = [text.replace('"', '""') for text in TEXTS]
    return {
        "text": "\n".join(TEXTS).encode(),
        "jsonl": files.jsonl([{"text": text, "label": "a"} for text in TEXTS]),
        "csv": ("label,text\n" + "".join(f'a,"{text}"\n' for text in quoted)).encode(),
        "parquet": files.parquet([{"label": "a", "text": text} for text in TEXTS]),
        "arrow": arrow(TEXTS, pa.ipc.new_file),
        "feather": arrow(TEXTS, pa.ipc.new_file, "lz4"),
        "stream.arrow": arrow(TEXTS, pa.ipc.new_stream, "zstd"),
    }


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("format_", ["text", "jsonl", "csv", "parquet", "arrow", "feather", "stream.arrow"])
def test_every_format_and_compression_gives_the_same_texts(
    format_: str, ending: str, tmp_path: Path, files: SimpleNamespace
) -> None:
    name = {"text": "a.txt"}.get(format_, f"a.{format_}") + ending
    file = files.write(tmp_path / name, files.compress[ending](contents(files)[format_]))
    rows = list(read_rows(Unit(file=file), TEXT))
    assert [row.text for row in rows] == TEXTS
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert all(row.reason is None for row in rows)


@pytest.mark.parametrize(("written", "name"), [("true", "true"), ("3", "3"), ("3.0", "3"), ('" 类 "', "类")])
def test_labels_that_are_numbers_or_booleans_have_a_name(
    written: str, name: str, tmp_path: Path, files: SimpleNamespace
) -> None:
    file = files.write(tmp_path / "a.jsonl", f'{{"text": "x", "label": {written}}}\n'.encode())
    assert [row.label for row in read_rows(Unit(file=file), LABELLED)] == [name]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{not json", "not_json"),
        ("[1]", "not_an_object"),
        ('{"other": "x"}', "text_missing"),
        ('{"text": null}', "text_missing"),
        ('{"text": 3, "label": "a"}', "text_not_a_string"),
        ('{"text": "x"}', "label_missing"),
        ('{"text": "x", "label": ["a"]}', "label_not_a_string"),
        ('{"text": "x", "label": 0.5}', "label_not_a_string"),
        ('{"text": "x", "label": NaN}', "label_not_a_string"),
        ('{"text": "x", "label": "\\ud800"}', "label_not_unicode"),
        ("", "empty_text"),
        ("[" * 100_000, "not_json"),
    ],
)
def test_a_bad_line_is_a_reject_and_the_next_is_read(
    line: str, reason: str, tmp_path: Path, files: SimpleNamespace
) -> None:
    file = files.write(tmp_path / "a.jsonl", f'{line}\n{{"text": "good", "label": 7}}\n'.encode())
    bad, good = read_rows(Unit(file=file), LABELLED)
    assert (bad.reason, bad.number) == (reason, 1)
    assert (good.text, good.label, good.number, good.reason) == ("good", "7", 2, None)


def test_a_csv_row_of_other_width_or_with_a_stray_quote_is_a_reject(tmp_path: Path, files: SimpleNamespace) -> None:
    file = files.write(tmp_path / "a.csv", b'text,label\nx,a,b\n"y"z,a\n"two\nlines",a\n')
    assert [row.reason for row in read_rows(Unit(file=file), TEXT)] == ["wrong_number_of_fields", "not_csv", None]
    assert [row.text for row in read_rows(Unit(file=file), TEXT)][-1] == "two\nlines"


def test_a_csv_field_of_a_million_characters_is_read(tmp_path: Path, files: SimpleNamespace) -> None:
    file = files.write(tmp_path / "a.csv", b"text\n" + b"x" * 1_000_000 + b"\n")
    assert [len(row.text) for row in read_rows(Unit(file=file), TEXT)] == [1_000_000]


def test_lines_longer_than_a_chunk_and_across_chunks_stay_whole(tmp_path: Path, files: SimpleNamespace) -> None:
    lines = ["é" * (CHUNK_BYTES + 3), "", "b" * (CHUNK_BYTES - 1), "c"]
    file = files.write(tmp_path / "a.txt", "\n".join(lines).encode() + b"\n")
    assert [row.text for row in read_rows(Unit(file=file), TEXT)] == lines


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path, files: SimpleNamespace) -> None:
    file = files.write(tmp_path / "a.csv", "\ufefftext\nx\n".encode())
    assert [row.text for row in read_rows(Unit(file=file), TEXT)] == ["x"]


def truncated(compress: Callable[[bytes], bytes]) -> bytes:
    data = compress(b"".join(b"line %d of many\n" % number for number in range(5000)))
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        (
            "a.txt",
            lambda files: "ok\nü".encode() + "中文\n".encode("gb18030") * 10,
            r"a\.txt: not UTF-8 at byte 5 \(0xd6\); .* iconv -f GB18030 -t UTF-8",
        ),
        ("a.jsonl.gz", lambda files: truncated(gzip.compress), r"a\.jsonl\.gz: the gzip data end too early"),
        ("a.txt.zst", lambda files: truncated(files.compress[".zst"]), r"a\.txt\.zst: damaged zstd data \(truncated"),
        ("a.txt.gz", lambda files: b"not gzip at all", r"a\.txt\.gz: not valid gzip"),
        ("a.txt.gz", lambda files: b"", "no gzip data at all"),
        ("a.jsonl", lambda files: b"[\n{}\n]\n", "one JSON array"),
        ("a.jsonl", lambda files: b'[{"text": "x"}, {"text": "y"}]', "one JSON array"),
        ("a.csv", lambda files: b"a,b\n1,2\n", r"a\.csv: no column text; its columns are a, b"),
        ("a.csv", lambda files: b'text\nx\n"open\n', r"opens in the record at line 3 does not close"),
        ("a.parquet", lambda files: files.parquet([{"a": "x"}]), r"a\.parquet: no column text; its columns are a"),
        ("a.parquet", lambda files: files.parquet([{"text": 3}]), r"column text is int64, not a string"),
        ("a.parquet", lambda files: files.parquet([{"text": "x"}])[:-9], r"a\.parquet: damaged parquet"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    name: str, make: Callable[[Any], bytes], message: str, tmp_path: Path, files: SimpleNamespace
) -> None:
    file = files.write(tmp_path / name, make(files))
    with pytest.raises(DataError, match=message):
        list(read_rows(Unit(file=file), TEXT))


def test_a_file_changed_or_gone_since_planning_is_noticed(tmp_path: Path, files: SimpleNamespace) -> None:
    file: RawFile = files.write(tmp_path / "a.txt", b"one\n")
    (tmp_path / "a.txt").write_bytes(b"two\n")
    with pytest.raises(DataError, match="has changed since the run was planned"):
        list(read_rows(Unit(file=file), TEXT))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match=r"has changed since the run was planned \(it is gone\)"):
        list(read_rows(Unit(file=file), TEXT))


def test_labels_in_plain_text_are_refused(tmp_path: Path, files: SimpleNamespace) -> None:
    with pytest.raises(DataError, match="a plain text file has no labels"):
        list(read_rows(Unit(file=files.write(tmp_path / "a.txt", b"one\n")), LABELLED))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_ids_and_licences_travel_along(name: str, tmp_path: Path, files: SimpleNamespace) -> None:
    rows = [{"key": 7, "text": "x", "terms": "CC0"}, {"key": 10**20, "text": "y", "terms": None}]
    if name != "a.jsonl":
        rows = [{**row, "key": str(row["key"])} for row in rows]
    table = "key,text,terms\n" + "".join(f"{r['key']},{r['text']},{r['terms'] or ''}\n" for r in rows)
    data = {"a.jsonl": files.jsonl, "a.csv": lambda _: table.encode(), "a.parquet": files.parquet}[name](rows)
    columns = Columns(id="key", license="terms")
    found = list(read_rows(Unit(file=files.write(tmp_path / name, data)), columns))
    assert [(row.text, row.id) for row in found] == [("x", "7"), ("y", "100000000000000000000")]
    assert [row.license or None for row in found] == ["CC0", None]


def test_a_nested_field_of_jsonl_is_named_with_dots(tmp_path: Path, files: SimpleNamespace) -> None:
    rows = [
        {"doc": {"text": "x"}, "meta": {"id": 1}},
        {"doc": {"text": "y"}, "meta": 3, "meta.id": "flat"},
        {"doc": {}},
    ]
    columns = Columns(text="doc.text", id="meta.id")
    found = list(read_rows(Unit(file=files.write(tmp_path / "a.jsonl", files.jsonl(rows))), columns))
    assert [(row.text, row.id, row.reason) for row in found[:2]] == [("x", "1", None), ("y", "flat", None)]
    assert found[2].reason == "text_missing"


def test_what_a_document_of_plain_text_is(tmp_path: Path, files: SimpleNamespace) -> None:
    unit = Unit(file=files.write(tmp_path / "a.txt", "\ufeffone\r\n two\n\n \t\nthree\n\n\n".encode()))
    paragraphs = [(row.number, row.text) for row in read_rows(unit, TEXT, document="paragraph")]
    assert paragraphs == [(1, "one\r\n two"), (2, "three")]
    assert [row.text for row in read_rows(unit, TEXT, document="file")] == ["one\r\n two\n\n \t\nthree\n\n\n"]
    assert len(list(read_rows(unit, TEXT))) == 7
