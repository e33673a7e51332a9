"""Units of work: parts of raw files that can be read apart, so that one large file keeps all cores busy.

Uncompressed lines are cut into ranges of bytes, of which each owns the lines that begin in it; Parquet files by row
groups, Arrow files by record batches. Where the cuts lie follows from the file's size, or from its footer, alone, so
a plan made anywhere gives the same units; no row is read for it. What is compressed as a whole, CSV (a quoted field may
hold any line), Arrow streams, and text whose documents are not lines are one unit a file: cut such a file yourself.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.corpus.arrow_layout import LayoutError, file_blocks, is_file
from components.corpus.rows import Document
from infra.errors import DataError
from infra.storage.raw import RawFile

UNIT_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """A part of one raw file; by default all of it."""

    file: RawFile
    start: int = 0
    """The first byte (lines), row group (Parquet) or record batch (Arrow)."""
    end: int | None = None
    """The one after the last; None: to the end, of a file that is not cut."""

    @property
    def is_whole(self) -> bool:
        """Whether it is a file that is not cut."""
        return self.end is None


def units_of(file: RawFile, document: Document = "line", unit_bytes: int = UNIT_BYTES) -> tuple[Unit, ...]:
    """The units of `file`, in its order; one or more.

    A file that cannot be looked into, damaged or gone, is one unit: who reads it tells what is wrong.

    Args:
        file: a raw file; one on an object store is not fetched for this.
        document: what a document of a plain text file is.
        unit_bytes: size of a unit; a row group or record batch that is larger is a unit alone.

    Raises:
        StorageError: the object store does not answer.
    """
    if file.compression is None and file.num_bytes > unit_bytes:
        if file.format == "jsonl" or (file.format == "text" and document == "line"):
            cuts = [*range(0, file.num_bytes, unit_bytes), file.num_bytes]
            return _between(file, cuts)
        if file.format in ("parquet", "arrow"):
            sizes = _sizes(file)
            if len(sizes) > 1:
                return _between(file, _cuts(sizes, unit_bytes))
    return (Unit(file=file),)


def _between(file: RawFile, cuts: Sequence[int]) -> tuple[Unit, ...]:
    return tuple(Unit(file=file, start=start, end=end) for start, end in itertools.pairwise(cuts))


def _cuts(sizes: Sequence[int], unit_bytes: int) -> list[int]:
    """Where to cut a row of parts so that each piece has at most `unit_bytes`, or one part."""
    cuts, held = [0], 0
    for position, size in enumerate(sizes):
        if held and held + size > unit_bytes:
            cuts.append(position)
            held = 0
        held += size
    return [*cuts, len(sizes)]


def _sizes(file: RawFile) -> list[int]:
    """Bytes of each row group or record batch, from the footer; none where there is no sound footer."""
    damage = (pa.ArrowException, LayoutError, DataError, FileNotFoundError, MemoryError)
    with contextlib.suppress(*damage), file.open_seekable() as source:
        if file.format == "arrow":
            return [block.body_bytes for block in file_blocks(source)[1]] if is_file(source) else []
        try:
            metadata = pq.read_metadata(source)
        except OSError as error:  # pyarrow raises a bare one for damaged data
            if error.errno is None:
                return []
            raise
        return [_group_bytes(metadata.row_group(index)) for index in range(metadata.num_row_groups)]
    return []


def _group_bytes(group: Any) -> int:
    return sum(int(group.column(index).total_compressed_size) for index in range(group.num_columns))
