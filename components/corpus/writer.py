"""Parquet files whose bytes depend on the rows alone, however the rows arrive in tables.

A row group ends after 16,384 rows or with the row that reaches 32 MiB of text, a file after 16 row groups: so the bytes
are the same for any number of blocks and workers, and a writer holds one row group.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

GROUP_ROWS = 1 << 14
GROUP_BYTES = 1 << 25
FILE_GROUPS = 16


class ParquetSink:
    """Writes `<prefix>-00000.parquet` and on. Tables need a column `num_bytes`."""

    def __init__(self, folder: Path, prefix: str, schema: pa.Schema) -> None:
        self.paths: list[Path] = []
        self.num_rows = 0
        self.num_bytes = 0
        self._folder, self._prefix, self._schema = folder, prefix, schema
        self._held: list[pa.Table] = []
        self._held_rows = 0
        self._held_bytes = 0
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0

    def add(self, table: pa.Table) -> None:
        """Takes rows, in order."""
        while len(table):
            ends = np.cumsum(table.column("num_bytes").to_numpy())
            until_bytes = int(np.searchsorted(ends, GROUP_BYTES - self._held_bytes)) + 1
            count = min(len(table), GROUP_ROWS - self._held_rows, until_bytes)
            self._held.append(table.slice(0, count))
            self._held_rows += count
            self._held_bytes += int(ends[count - 1])
            self.num_rows += count
            self.num_bytes += int(ends[count - 1])
            if self._held_rows >= GROUP_ROWS or self._held_bytes >= GROUP_BYTES:
                self._flush()
            table = table.slice(count)

    def close(self) -> None:
        """Writes what is left; a split without rows has one empty file."""
        if self._held_rows or not self.paths:
            self._flush()
        self._close_file()

    def _flush(self) -> None:
        if self._writer is None:
            path = self._folder / f"{self._prefix}-{len(self.paths):05d}.parquet"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
            self.paths.append(path)
            self._groups = 0
        group = pa.concat_tables(self._held) if self._held else self._schema.empty_table()
        self._writer.write_table(group.cast(self._schema).combine_chunks(), row_group_size=GROUP_ROWS)
        self._held, self._held_rows, self._held_bytes = [], 0, 0
        self._groups += 1
        if self._groups == FILE_GROUPS:
            self._close_file()

    def _close_file(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
