"""Parquet: row groups read in batches of 1,024 rows, pages as they come.

What the footer and the first pages claim is looked at before pyarrow allocates it. A page has at most 2 GiB by its
format. A dictionary is decoded row by row, so one of a few long values can make terabytes: where 1,024 of its values
may be more than 2 GiB, the text is read as indices and measured first, which is 3 times as slow and which no file needs
that was written with the default of 1 MiB for dictionaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow.parquet as pq

from components.corpus.readers.tables import TableRows, wanted_columns
from components.corpus.rows import BATCH_ROWS, Columns, ReadLimits, RowBatch
from components.corpus.streams import CHUNK_BYTES, open_seekable, raise_too_large, reading
from components.corpus.units import Unit
from infra.errors import DataError

MAX_BATCH_BYTES = 2 << 30
_DICTIONARY_PAGE = 2


def read_parquet(unit: Unit, columns: Columns, limits: ReadLimits) -> Iterator[RowBatch]:
    """The rows of the row groups of `unit`; see `read_batches`."""
    file, table = unit.file, TableRows(unit.file, columns, limits)
    with open_seekable(unit, limits) as stream, reading(file):
        metadata = pq.read_metadata(stream)
        schema = metadata.schema.to_arrow_schema()
        names = [schema.names[place] for place in wanted_columns(file, schema, columns)]
        groups = range(unit.start, metadata.num_row_groups if unit.end is None else unit.end)
        leaves = [
            i for i in range(metadata.num_columns) if metadata.schema.column(i).path.partition(".")[0] in set(names)
        ]
        chunks = [metadata.row_group(group).column(leaf) for group in groups for leaf in leaves]
        _check_claims(unit, chunks, limits)
        largest = max((_dictionary_bytes(stream, chunk) for chunk in chunks), default=0)
        stream.seek(0)
        measured = names if largest * BATCH_ROWS > MAX_BATCH_BYTES else None
        # pages one by one, not whole column chunks: hence a buffer
        with pq.ParquetFile(stream, read_dictionary=measured, buffer_size=CHUNK_BYTES) as parquet:
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
                yield from table.batches([batch.column(batch.schema.names.index(name)) for name in names])
        num_claimed = sum(metadata.row_group(group).num_rows for group in groups)
        if table.rows.num_rows != num_claimed:
            raise DataError(
                f"{file.name}: damaged parquet data ({table.rows.num_rows} rows, {num_claimed} in the footer); make "
                "the file again"
            )
    yield from table.rows.rest()


def _check_claims(unit: Unit, chunks: list[Any], limits: ReadLimits) -> None:
    """Raises DataError where the footer claims more than a file may have."""
    for chunk in chunks:
        if chunk.total_uncompressed_size > max(1, chunk.num_values) * 4 * limits.max_document_bytes + CHUNK_BYTES:
            raise DataError(
                f"{unit.file.name}: a row group has {chunk.total_uncompressed_size} bytes of column "
                f"{chunk.path_in_schema} in {chunk.num_values} rows, far more a row than "
                f"{limits.where}.max_document_bytes ({limits.max_document_bytes}); raise it, or cut the documents"
            )
    raise_too_large(unit.file, sum(chunk.total_uncompressed_size for chunk in chunks), limits)


def _dictionary_bytes(stream: IO[bytes], chunk: Any) -> int:
    """What the dictionary of a column chunk decompresses to, as its page says; 0 where it has none.

    A page begins with its header (Thrift's compact protocol): field 1 its type, field 2 its decompressed size, each the
    byte 0x15 and a zigzag number. (parquet-format, `PageHeader`.)
    """
    stream.seek(max(0, min(chunk.data_page_offset, chunk.dictionary_page_offset or chunk.data_page_offset)))
    numbers: list[int] = []
    data = stream.read(16)
    position = 0
    while len(numbers) < 2 and data[position : position + 1] == b"\x15":
        number = shift = 0
        while True:
            position += 1
            byte = data[position] if position < len(data) else 0
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        position += 1
        numbers.append(number >> 1)
    if len(numbers) < 2:
        return MAX_BATCH_BYTES  # no header that we know: take no chance
    return numbers[1] if numbers[0] == _DICTIONARY_PAGE else 0
