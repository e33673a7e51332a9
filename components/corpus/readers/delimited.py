"""CSV with a header, strict: quotes inside a field are written twice.

A record that is too long is skipped to where its quotes close. One whose quotes never close takes the rest of the file
with it, so it is an error of the file.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

from components.corpus.lines import LongLine, Utf8Lines, read_blocks, start_of
from components.corpus.normalise import is_unicode
from components.corpus.readers.fields import add_record
from components.corpus.rows import (
    BATCH_ROWS,
    EXCERPT_CHARACTERS,
    Columns,
    ReadLimits,
    Reason,
    RowBatch,
    RowBatcher,
    excerpt,
)
from components.corpus.units import Unit
from infra.errors import DataError
from infra.storage.raw import RawFile


def read_csv(unit: Unit, columns: Columns, limits: ReadLimits) -> Iterator[RowBatch]:
    """The rows of a CSV file; see `read_batches`."""
    rows, utf8 = RowBatcher(), Utf8Lines(unit.file)
    csv.field_size_limit(max(csv.field_size_limit(), 2 * limits.max_document_bytes))  # 131,072 by default
    records = _records(unit, limits, utf8)
    header = next(records, None)
    if header is None:
        return
    if isinstance(header, _Bad):
        if header.reason == Reason.NOT_UNICODE:
            utf8.refuse()
        raise DataError(
            f"{unit.file.name}: the first line is no CSV header ({header.reason}: {excerpt(header.shown).strip()}); "
            "name the columns in it"
        )
    names, *first = header
    names = [name.strip() for name in names]
    places = column_places(unit.file, names, columns)
    for run in itertools.chain([first], records):
        if isinstance(run, _Bad):
            rows.add(run.shown, reason=run.reason)
        elif columns.label is None and set(map(len, run)) == {len(names)}:
            yield from rows.rest()
            batch = RowBatch.of_texts(rows.num_rows + 1, [record[places[0]] for record in run])
            found = iter(places[1:])
            for name, target in ((columns.id, batch.ids), (columns.license, batch.licenses)):
                if name is not None:
                    place = next(found)
                    target[:] = [record[place] for record in run]
            rows.num_rows += len(run)
            yield batch
        else:
            for record in run:
                _add(rows, record, len(names), places, columns)
        yield from rows.full()
    yield from rows.rest()
    utf8.check()


def _add(rows: RowBatcher, record: list[str], width: int, places: list[int], columns: Columns) -> None:
    if not record:
        rows.add("", reason=Reason.EMPTY)
    elif len(record) != width:
        rows.add(",".join(record), reason=Reason.WRONG_NUMBER_OF_FIELDS)
    else:
        found = iter(places)
        wanted = (columns.text, columns.label, columns.id, columns.license)
        values = [None if name is None else record[next(found)] for name in wanted]
        add_record(rows, *values, has_label=columns.label is not None)


def column_places(file: RawFile, names: list[str], columns: Columns) -> list[int]:
    """Where the columns that are asked for stand among `names`, in the order of `columns.named()`.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in columns.named() if name not in names]
    if missing:
        raise DataError(f"{file.name}: no column {' and no '.join(missing)}; its columns are {', '.join(names[:100])}")
    return [names.index(name) for name in columns.named()]


class _Bad(NamedTuple):
    """A record that cannot be used."""

    reason: Reason
    shown: str


Run = list[list[str]] | _Bad
"""Records one after the other, at most 1,024."""


def _records(unit: Unit, limits: ReadLimits, utf8: Utf8Lines) -> Iterator[Run]:
    """The records of a file. Blocks of lines go through the `csv` module at once; a record that a block does not end
    waits for the next one."""
    max_bytes = limits.max_document_bytes
    held: list[str] = []
    num_lines = num_held = num_quotes = first_line = 0
    is_skipping = False
    for offset, block in read_blocks(unit, limits, utf8):
        if isinstance(block, LongLine):
            if not is_skipping:
                yield _Bad(Reason.TOO_LONG, held[0] if held else block.shown)
                num_quotes, first_line = _quotes(held), num_lines + 1
            num_quotes += block.num_quotes
            num_lines += len(held) + 1
            held, num_held, is_skipping = [], 0, num_quotes % 2 == 1
            continue
        lines, has_bad = _decoded(block, offset, utf8)
        if is_skipping:
            skipped = next((i for i, line in enumerate(lines, 1) if line.count('"') % 2), len(lines) + 1)
            is_skipping = skipped > len(lines)
            num_lines += min(skipped, len(lines))
            lines = lines[skipped:]
        if held and b'"' not in block:  # inside of quotes
            held += lines
            num_held += len(block) + 1
        elif lines:
            must_look = has_bad or num_held + len(block) > max_bytes or not all(map(is_unicode, held))
            lines = held + lines
            start = 0
            for run, end in _parsed(lines, 1 if must_look else BATCH_ROWS):
                yield _looked_at(run, lines[start:end], max_bytes) if must_look else run
                start = end
            num_lines += start
            held = lines[start:]
            num_held = _num_bytes(held)
        if num_held > max_bytes:
            yield _Bad(Reason.TOO_LONG, held[0])
            first_line = num_lines + 1
            num_lines += len(held)
            held, num_held, num_quotes, is_skipping = [], 0, 1, True
    if held or is_skipping:
        first_line = num_lines + 1 if held else first_line
        raise DataError(
            f"{unit.file.name}: the quoted field that opens in the record at line {first_line} does not close; "
            "write a quote inside a field as two quotes"
        )


def _decoded(block: bytes, offset: int, utf8: Utf8Lines) -> tuple[list[str], bool]:
    """The lines of a block with their ends, and whether some are not UTF-8: those have surrogates."""
    text = utf8.decode_whole(block)
    has_bad = text is None
    if text is None:
        for _ in utf8.decode_each(block, offset):
            pass
        text = block.decode(errors="surrogateescape")
    return list(io.StringIO(text + "\n", newline="\n")), has_bad


def _parsed(lines: list[str], max_records: int) -> Iterator[tuple[Run, int]]:
    """The records of `lines`, each run with the number of lines up to its end; not the last if it does not end."""
    reader = csv.reader(lines, strict=True)
    run: list[list[str]] = []
    end = 0
    while True:
        try:
            for fields in reader:
                run.append(fields)
                end = reader.line_num
                if len(run) == max_records:
                    yield run, end
                    run = []
            if run:
                yield run, end
            return
        except csv.Error as error:
            if run:
                yield run, end
                run = []
            if "unexpected end of data" in str(error):
                return
            yield _Bad(Reason.NOT_CSV, str(error)), reader.line_num


def _looked_at(run: Run, lines: list[str], max_bytes: int) -> Run:
    """One record, unless its lines are too long or not UTF-8."""
    if _num_bytes(lines) - 1 > max_bytes:
        return _Bad(Reason.TOO_LONG, lines[0])
    if not all(map(is_unicode, lines)):
        return _Bad(Reason.NOT_UNICODE, start_of("".join(lines)[:EXCERPT_CHARACTERS].encode(errors="surrogateescape")))
    return run


def _num_bytes(lines: list[str]) -> int:
    return sum(len(line) if line.isascii() else len(line.encode(errors="surrogateescape")) for line in lines)


def _quotes(lines: list[str]) -> int:
    return sum(line.count('"') for line in lines)
