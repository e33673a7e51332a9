"""Parquet: row groups read in batches of 1,024 rows, pages as they come.

A page is at most 2 GiB by its format, which bounds what a file can claim; a writer's default is 1 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from components.corpus.readers.tables import batches_of, wanted_columns
from components.corpus.rows import BATCH_ROWS, Columns, ReadLimits, RowBatch, RowBatcher
from components.corpus.streams import CHUNK_BYTES, open_seekable, raise_too_large, reading
from components.corpus.units import Unit
from infra.errors import DataError


def read_parquet(unit: Unit, columns: Columns, limits: ReadLimits) -> Iterator[RowBatch]:
    """The rows of the row groups of `unit`; see `read_batches`."""
    file, rows = unit.file, RowBatcher()
    with open_seekable(unit, limits) as stream, reading(file):
        with pq.ParquetFile(stream) as parquet:
            schema = parquet.schema_arrow
            places = wanted_columns(file, schema, columns)
            metadata = parquet.metadata
        groups = range(unit.start, metadata.num_row_groups if unit.end is None else unit.end)
        _check_claims(unit, metadata, _leaves(metadata, columns), groups, limits)
        stream.seek(0)
        # texts as a dictionary where they are one, so that they can be measured; pages one by one, not chunks
        with pq.ParquetFile(stream, read_dictionary=[columns.text], buffer_size=CHUNK_BYTES) as parquet:
            names = [schema.names[place] for place in places]
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=groups, columns=names, use_threads=False):
                arrays = [batch.column(name) for name in names]
                yield from batches_of(rows, arrays, columns, limits.max_document_bytes)
        num_claimed = sum(metadata.row_group(group).num_rows for group in groups)
        if rows.num_rows != num_claimed:
            raise DataError(
                f"{file.name}: damaged parquet data ({rows.num_rows} rows, {num_claimed} in the footer); make the file "
                "again"
            )
    yield from rows.rest()


def _leaves(metadata: Any, columns: Columns) -> list[int]:
    """The physical columns of those that are asked for."""
    wanted = set(columns.named())
    return [i for i in range(metadata.num_columns) if metadata.schema.column(i).path.partition(".")[0] in wanted]


def _check_claims(unit: Unit, metadata: Any, leaves: list[int], groups: range, limits: ReadLimits) -> None:
    """Raises DataError where the footer claims more than a file may have."""
    total = 0
    for group in map(metadata.row_group, groups):
        for leaf in leaves:
            chunk = group.column(leaf)
            total += chunk.total_uncompressed_size
            if chunk.total_uncompressed_size > max(1, chunk.num_values) * limits.max_document_bytes + CHUNK_BYTES:
                raise DataError(
                    f"{unit.file.name}: a row group has {chunk.total_uncompressed_size} bytes of column "
                    f"{chunk.path_in_schema} in {chunk.num_values} rows, more a row than "
                    f"{limits.where}.max_document_bytes ({limits.max_document_bytes}); raise it, or cut the documents"
                )
    raise_too_large(unit.file, total, limits)
