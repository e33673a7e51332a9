"""Text, JSONL, Parquet and CSV files as rows, in the order of the file, bad rows marked and handed on.

A reader is a generator over one file: it holds one chunk of lines or 1,024 Parquet rows at a time. Compressed Parquet
(`.parquet.gz`) is the exception: it needs seeking, so it is decompressed into memory whole.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.normalise import clean, is_unicode
from components.corpus.rows import Reason, Row, excerpt
from components.corpus.streams import open_bytes, read_lines, reading
from infra.errors import DataError
from infra.storage.raw import RawFile

PARQUET_BATCH_ROWS = 1024
MAX_CSV_FIELD_CHARACTERS = 1 << 26


def read_rows(file: RawFile, text_column: str, label_column: str | None = None) -> Iterator[Row]:
    """The rows of `file`; those that cannot be used carry a reason.

    Args:
        file: what to read.
        text_column: the field of the text; plain text files have none and ignore it.
        label_column: the field of the label, for labelled data.

    Raises:
        DataError: the file as a whole cannot be used: not UTF-8, truncated, without the column.
        StorageError: it cannot be read.
    """
    if file.format == "text":
        if label_column is not None:
            raise DataError(f"{file.path}: a plain text file has no labels; use jsonl, csv or parquet")
        return _read_text(file)
    readers = {"jsonl": _read_jsonl, "csv": _read_csv, "parquet": _read_parquet}
    return readers[file.format](file, text_column, label_column)


def _row(number: int, text: Any, label: Any, label_column: str | None) -> Row:
    if text is None:
        return Row(number, "", reason=Reason.NO_TEXT)
    if not isinstance(text, str):
        return Row(number, excerpt(str(text)), reason=Reason.TEXT_NOT_A_STRING)
    if label_column is None:
        return Row(number, text)
    if label is None or label == "":
        return Row(number, excerpt(text), reason=Reason.NO_LABEL)
    named = _label(label)
    if named is None:
        return Row(number, excerpt(text), reason=Reason.LABEL_NOT_A_STRING)
    if not is_unicode(named):
        return Row(number, excerpt(text), reason=Reason.LABEL_NOT_UNICODE)
    return Row(number, text, clean(named))


def _label(value: Any) -> str | None:
    """The name of a class that was written as a string, a whole number (3 and 3.0 are one) or true or false."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) else None


def _read_text(file: RawFile) -> Iterator[Row]:
    for number, line in enumerate(read_lines(file), start=1):
        yield Row(number, line)


def _read_jsonl(file: RawFile, text_column: str, label_column: str | None) -> Iterator[Row]:
    for number, line in enumerate(read_lines(file), start=1):
        if number == 1 and re.match(r"\s*\[\s*(\{|$)", line):
            raise DataError(f"{file.path}: one JSON array; write one JSON object a line instead (jq -c '.[]')")
        if not line or line.isspace():
            yield Row(number, "", reason=Reason.EMPTY)
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield Row(number, excerpt(line), reason=Reason.NOT_JSON)
            continue
        if not isinstance(value, dict):
            yield Row(number, excerpt(line), reason=Reason.NOT_AN_OBJECT)
            continue
        row = _row(number, value.get(text_column), value.get(label_column) if label_column else None, label_column)
        yield Row(number, excerpt(line), reason=row.reason) if row.reason == Reason.NO_TEXT else row


def _read_csv(file: RawFile, text_column: str, label_column: str | None) -> Iterator[Row]:
    lines = read_lines(file)
    previous_limit = csv.field_size_limit(MAX_CSV_FIELD_CHARACTERS)  # 131,072 by default: a long document
    try:
        reader = csv.reader((line + "\n" for line in lines), strict=True)
        header = _csv_record(file, reader)
        if header is None:
            return
        columns = _columns(file, [name.strip() for name in header], text_column, label_column)
        number = 0
        while True:
            number += 1
            try:
                record = _csv_record(file, reader)
            except csv.Error as error:
                yield Row(number, excerpt(str(error)), reason=Reason.NOT_CSV)
                continue
            if record is None:
                return
            if not record:
                yield Row(number, "", reason=Reason.EMPTY)
            elif len(record) != len(header):
                yield Row(number, excerpt(",".join(record)), reason=Reason.WRONG_NUMBER_OF_FIELDS)
            else:
                values = [record[column] for column in columns]
                yield _row(number, values[0], values[1] if label_column else None, label_column)
    finally:
        csv.field_size_limit(previous_limit)


def _csv_record(file: RawFile, reader: Any) -> list[str] | None:
    """The next record, or None at the end.

    Raises:
        DataError: a quoted field that never ends, or one of more than 64 Mi characters.
        csv.Error: a record that is not CSV; the next one can be read.
    """
    first_line = reader.line_num + 1
    try:
        record: list[str] | None = next(reader, None)
    except csv.Error as error:
        if "unexpected end of data" in str(error) or "field larger" in str(error):
            raise DataError(
                f"{file.path}: the quoted field that opens in the record at line {first_line} does not close; "
                "write a quote inside a field as two quotes"
            ) from error
        raise
    return record


def _columns(file: RawFile, names: list[str], text_column: str, label_column: str | None) -> list[int]:
    wanted = [text_column] if label_column is None else [text_column, label_column]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"{file.path}: no column {' and no '.join(missing)}; its columns are {', '.join(names)}")
    return [names.index(name) for name in wanted]


def _read_parquet(file: RawFile, text_column: str, label_column: str | None) -> Iterator[Row]:
    with open_bytes(file) as stream, reading(file):
        source = pa.BufferReader(stream.read()) if file.compression else stream.name
        with pq.ParquetFile(source) as parquet:
            schema = parquet.schema_arrow
            columns = [schema.names[index] for index in _columns(file, schema.names, text_column, label_column)]
            if not _is_text(schema.field(text_column).type):
                raise DataError(
                    f"{file.path}: column {text_column} is {schema.field(text_column).type}, not a string; "
                    "name the column of the text in text_column"
                )
            number = 0
            for batch in parquet.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=columns):
                batch.validate(full=True)  # text that is not UTF-8
                values = [batch.column(name).to_pylist() for name in columns]
                labels = values[1] if label_column else [None] * len(batch)
                for text, label in zip(values[0], labels, strict=True):
                    number += 1
                    yield _row(number, text, label, label_column)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))
