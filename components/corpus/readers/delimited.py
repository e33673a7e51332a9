"""CSV with a header, strict: quotes inside a field are written twice.

A record that is too long is skipped to where its quotes close. One whose quotes never close takes the rest of the file
with it, so it is an error of the file.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from components.corpus.lines import LongLine, Utf8Lines, read_blocks
from components.corpus.readers.fields import add_record
from components.corpus.rows import EXCERPT_CHARACTERS, Columns, ReadLimits, Reason, RowBatch, RowBatcher
from components.corpus.units import Unit
from infra.errors import DataError
from infra.storage.raw import RawFile


def read_csv(unit: Unit, columns: Columns, limits: ReadLimits) -> Iterator[RowBatch]:
    """The rows of a CSV file; see `read_batches`."""
    rows, utf8 = RowBatcher(), Utf8Lines(unit.file)
    csv.field_size_limit(max(csv.field_size_limit(), limits.max_document_bytes))  # 131,072 by default
    records = _Records(unit, limits, utf8)
    try:
        header = records.next()
        if header is None:
            return
        if records.is_not_utf8:
            raise utf8.error(*records.first_not_utf8)
        names = [name.strip() for name in header]
    except (_TooLongError, csv.Error) as error:
        raise DataError(
            f"{unit.file.name}: the first line is no CSV header ({error}); name the columns in it"
        ) from error
    places = column_places(unit.file, names, columns)
    text, label, id_, license_ = (None if place is None else places[place] for place in _positions(columns))
    while True:
        yield from rows.full()
        try:
            record = records.next()
        except _TooLongError as error:
            rows.add(str(error), reason=Reason.TOO_LONG)
            records.skip_record()
            continue
        except csv.Error as error:
            rows.add(str(error), reason=Reason.NOT_CSV)
            continue
        if record is None:
            break
        if records.is_not_utf8:
            shown = ",".join(record)[:EXCERPT_CHARACTERS]
            rows.add(
                shown.encode(errors="surrogateescape").decode(errors="backslashreplace"), reason=Reason.NOT_UNICODE
            )
        elif not record:
            rows.add("", reason=Reason.EMPTY)
        elif len(record) != len(header):
            rows.add(",".join(record), reason=Reason.WRONG_NUMBER_OF_FIELDS)
        else:
            values = [None if place is None else record[place] for place in (text, label, id_, license_)]
            add_record(rows, *values, has_label=label is not None)
    yield from rows.rest()
    utf8.check()


def column_places(file: RawFile, names: list[str], columns: Columns) -> list[int]:
    """Where the columns that are asked for stand among `names`, in the order of `columns.named()`.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in columns.named() if name not in names]
    if missing:
        raise DataError(f"{file.name}: no column {' and no '.join(missing)}; its columns are {', '.join(names[:100])}")
    return [names.index(name) for name in columns.named()]


def _positions(columns: Columns) -> list[int | None]:
    """The place of text, label, id and license in `columns.named()`."""
    named = iter(range(4))
    return [
        None if name is None else next(named) for name in (columns.text, columns.label, columns.id, columns.license)
    ]


class _TooLongError(Exception):
    """The record is longer than a document may be; its message is the record's start."""


class _Records:
    """The records of a file; and what the `csv` module cannot tell of the lines that it took."""

    def __init__(self, unit: Unit, limits: ReadLimits, utf8: Utf8Lines) -> None:
        self._file, self._utf8 = unit.file, utf8
        self._max_bytes = limits.max_document_bytes
        self._lines = self._read(unit, limits)
        self._reader: Any = csv.reader(self, strict=True)
        self._line_number = self._num_bytes = self._num_quotes = 0
        self._start = ""
        self.is_not_utf8 = False
        """Whether a line of the last record was not UTF-8."""
        self.first_not_utf8 = (0, b"\0")
        """The byte at which that begins, and what stands there."""

    def next(self) -> list[str] | None:
        """The next record; None at the end.

        Raises:
            _TooLongError: it is too long; go on with `skip_record`.
            csv.Error: it is no CSV; the next one can be read.
            DataError: its quotes do not close.
        """
        first_line = self._line_number + 1
        self._num_bytes = self._num_quotes = 0
        self.is_not_utf8 = False
        try:
            record: list[str] | None = next(self._reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise self._does_not_close(first_line) from error
            raise
        return record

    def skip_record(self) -> None:
        """Skips to the line on which the quotes of the record that is too long close."""
        first_line = self._line_number
        while self._num_quotes % 2:
            line = next(self._lines, None)
            if line is None:
                raise self._does_not_close(first_line)
            self._line_number += 1
            self._num_quotes += line.num_quotes if isinstance(line, LongLine) else line.count('"')

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> str:
        """The next line, for the `csv` module."""
        line = next(self._lines)
        self._line_number += 1
        if not self._num_bytes:
            self._start = line.shown if isinstance(line, LongLine) else line[:EXCERPT_CHARACTERS]
        if isinstance(line, LongLine):
            self._num_quotes += line.num_quotes
            raise _TooLongError(self._start)
        self._num_quotes += line.count('"')
        self._num_bytes += len(line.encode(errors="surrogateescape")) + 1
        if self._num_bytes - 1 > self._max_bytes:
            raise _TooLongError(self._start)
        return line + "\n"

    def _read(self, unit: Unit, limits: ReadLimits) -> Iterator[str | LongLine]:
        for offset, block in read_blocks(unit, limits, self._utf8):
            if isinstance(block, LongLine):
                yield block
            elif (lines := self._utf8.decode(block)) is not None:
                yield from lines
            else:
                place = offset
                for line in self._utf8.decode_each(block, offset):
                    if isinstance(line, bytes):
                        self.is_not_utf8 = True
                        self.first_not_utf8 = _first_bad(line, place)
                        yield line.decode(errors="surrogateescape")
                        place += len(line) + 1
                    else:
                        yield line
                        place += len(line.encode()) + 1

    def _does_not_close(self, first_line: int) -> DataError:
        return DataError(
            f"{self._file.name}: the quoted field that opens in the record at line {first_line} does not close; "
            "write a quote inside a field as two quotes"
        )


def _first_bad(line: bytes, offset: int) -> tuple[int, bytes]:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return offset + error.start, line[error.start : error.start + 1000]
    return offset, line
