"""Text, JSONL, CSV, Parquet and Arrow files as rows, in the order of the file, bad rows marked and handed on.

Every row that was read leaves here, good or with a reason, so that whoever merges them can count. A reader holds one
batch, one chunk of 1 MiB and one document; a parsed JSON line or CSV record may take 23 times its bytes (empty lists),
so lower `max_document_bytes` where memory is scarce.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from components.corpus.readers.arrow import read_arrow
from components.corpus.readers.delimited import read_csv
from components.corpus.readers.jsonl import read_jsonl
from components.corpus.readers.parquet import read_parquet
from components.corpus.readers.text import read_text
from components.corpus.rows import Columns, Document, ReadLimits, Row, RowBatch
from components.corpus.units import Unit
from infra.errors import DataError

_READERS = {"jsonl": read_jsonl, "csv": read_csv, "parquet": read_parquet, "arrow": read_arrow}
_LIMITS = ReadLimits()


def read_batches(
    unit: Unit, columns: Columns, limits: ReadLimits = _LIMITS, document: Document = "line"
) -> Iterator[RowBatch]:
    """The rows of `unit` in batches of columns; those that cannot be used carry a reason.

    A blank line of a text file is a good row here: what is empty after cleaning is for who cleans.

    Args:
        unit: what to read.
        columns: the fields of a row; plain text files have none and ignore them, but for the label.
        limits: of memory and time.
        document: what a document of a plain text file is. Blank lines stand between paragraphs and are no rows.

    Raises:
        DataError: the file as a whole cannot be used: truncated, of another encoding, without the column.
        StorageError: it cannot be read.
    """
    if unit.file.format == "text":
        if columns.label is not None:
            raise DataError(f"{unit.file.name}: a plain text file has no labels; use jsonl, csv, parquet or arrow")
        return read_text(unit, limits, document)
    return _READERS[unit.file.format](unit, columns, limits)


def read_rows(unit: Unit, columns: Columns, limits: ReadLimits = _LIMITS, document: Document = "line") -> Iterator[Row]:
    """The same, row by row: half as fast for short objects, a fifth for lines of plain text."""
    return chain.from_iterable(batch.rows() for batch in read_batches(unit, columns, limits, document))
