"""Arrow IPC: files (`.arrow`, Feather V2) and streams (what Hugging Face `datasets` saves), a record batch at a time.

A record batch is in memory whole, so one may have 2 GiB at most; `datasets` and Feather write some MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from components.corpus.arrow_layout import (
    Block,
    LayoutError,
    decompressed_bytes,
    file_blocks,
    is_file,
    stream_blocks,
)
from components.corpus.readers.tables import TableRows, wanted_columns
from components.corpus.rows import Columns, ReadLimits, RowBatch
from components.corpus.streams import open_seekable, raise_too_large, reading
from components.corpus.units import Unit
from infra.errors import DataError
from infra.storage.raw import RawFile

MAX_BATCH_BYTES = 2 << 30


def read_arrow(unit: Unit, columns: Columns, limits: ReadLimits) -> Iterator[RowBatch]:
    """The rows of the record batches of `unit`; see `read_batches`."""
    file, table = unit.file, TableRows(unit.file, columns, limits)
    with open_seekable(unit, limits) as stream, reading(file):
        try:
            in_file_format = is_file(stream)
            if in_file_format:
                dictionaries, records = file_blocks(stream)
                blocks = [*dictionaries, *records[unit.start : unit.end]]
            else:
                blocks = list(stream_blocks(stream))
            _check_claims(file, stream, blocks, limits)
        except LayoutError as error:
            raise DataError(f"{file.name}: damaged arrow data ({error}); make the file again") from error
        stream.seek(0)
        for batch in _batches(unit, stream, columns, in_file_format):
            yield from table.batches(batch)
    yield from table.rows.rest()


def _batches(unit: Unit, stream: IO[bytes], columns: Columns, in_file_format: bool) -> Iterator[list[pa.Array]]:
    """The columns that are asked for, of one record batch after the other."""
    opened: Any = pa.ipc.open_file if in_file_format else pa.ipc.open_stream
    schema = opened(pa.PythonFile(stream, "r")).schema
    stream.seek(0)
    places = wanted_columns(unit.file, schema, columns)
    options = pa.ipc.IpcReadOptions(included_fields=sorted(set(places)), use_threads=False)
    reader = opened(pa.PythonFile(stream, "r"), options=options)
    order = [sorted(set(places)).index(place) for place in places]
    if in_file_format:
        end = reader.num_record_batches if unit.end is None else unit.end
        found = (reader.get_batch(index) for index in range(unit.start, end))
    else:
        found = iter(reader)
    for batch in found:
        yield [batch.column(index) for index in order]


def _check_claims(file: RawFile, stream: IO[bytes], blocks: list[Block], limits: ReadLimits) -> None:
    """Raises DataError where a record batch or the file claims more than it may have."""
    total = 0
    for block in blocks:
        num_bytes = decompressed_bytes(stream, block)
        total += num_bytes
        if num_bytes > MAX_BATCH_BYTES:
            raise DataError(
                f"{file.name}: a record batch of {num_bytes} bytes, more than {MAX_BATCH_BYTES}; write the file again "
                "in smaller batches (pyarrow: max_chunksize)"
            )
    raise_too_large(file, total, limits)
