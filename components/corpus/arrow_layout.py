"""Where the record batches of an Arrow IPC file or stream lie, and how large they say they are, told from their
metadata alone, for pyarrow allocates what a batch claims before it looks.

It reads the few fields it needs of the flatbuffers (format: arrow.apache.org/docs/format/Columnar.html, "Serialization
and Interprocess Communication", and flatbuffers.dev, "Internals"). Not a reader: rows are read by pyarrow.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

MAGIC = b"ARROW1"
_CONTINUES = 0xFFFFFFFF
_DICTIONARY, _RECORDS = 2, 3
"""Values of `MessageHeader`."""
MAX_METADATA_BYTES = 64 << 20


class LayoutError(ValueError):
    """Not what an Arrow file looks like."""


@dataclass(frozen=True, slots=True)
class Block:
    """A message: a record batch or a dictionary."""

    offset: int
    """Of its metadata, in bytes of the file."""
    metadata_bytes: int
    """With the eight or four bytes before it."""
    body_bytes: int


def is_file(stream: IO[bytes]) -> bool:
    """Whether it is in the file format (else a stream); leaves `stream` at its start."""
    stream.seek(0)
    start = stream.read(len(MAGIC))
    stream.seek(0)
    return start == MAGIC


def file_blocks(stream: IO[bytes]) -> tuple[list[Block], list[Block]]:
    """Dictionaries and record batches of a file, as its footer names them.

    Raises:
        LayoutError: no sound footer.
    """
    num_bytes = stream.seek(0, 2)
    stream.seek(max(0, num_bytes - 10))
    end = stream.read(10)
    if end[4:] != MAGIC:
        raise LayoutError("no footer at its end; the file is truncated")
    (footer_bytes,) = struct.unpack("<i", end[:4])
    if not 0 < footer_bytes <= min(num_bytes - 10, MAX_METADATA_BYTES):
        raise LayoutError(f"a footer of {footer_bytes} bytes")
    stream.seek(num_bytes - 10 - footer_bytes)
    try:
        table = _Table(stream.read(footer_bytes))
        found = tuple([Block(*one) for one in table.structs(field, "<qi4xq")] for field in (2, 3))
    except struct.error as error:
        raise LayoutError("a footer that is cut") from error
    for block in (*found[0], *found[1]):
        _check_within(block, num_bytes)
    return found[0], found[1]


def stream_blocks(stream: IO[bytes]) -> Iterator[Block]:
    """The messages of a stream, schema included, in order; only their lengths are read.

    Raises:
        LayoutError: a message of an impossible length.
    """
    num_bytes = stream.seek(0, 2)
    offset = 0
    while offset < num_bytes:
        stream.seek(offset)
        words = stream.read(8)
        if len(words) < 4 or words[:4] == b"\0\0\0\0" or words[4:] == b"\0\0\0\0":
            return
        continues = words[:4] == struct.pack("<I", _CONTINUES)
        start = 8 if continues else 4
        try:
            (length,) = struct.unpack_from("<i", words, 4 if continues else 0)
            _check_within(Block(offset, start + length, 0), num_bytes)
            stream.seek(offset + start)
            body_bytes = _Table(stream.read(length)).scalar(3, "<q", 0)
        except struct.error as error:
            raise LayoutError("metadata that are cut") from error
        block = Block(offset, start + length, body_bytes)
        _check_within(block, num_bytes)
        yield block
        offset += block.metadata_bytes + block.body_bytes


def decompressed_bytes(stream: IO[bytes], block: Block) -> int:
    """Bytes that a message claims to have once its buffers are decompressed; 0 for a schema.

    Raises:
        LayoutError: metadata that make no sense.
    """
    stream.seek(block.offset)
    data = stream.read(block.metadata_bytes)
    try:
        message = _Table(data[8 if data[:4] == struct.pack("<I", _CONTINUES) else 4 :])
        kind = message.scalar(1, "<B", 0)
        if kind not in (_DICTIONARY, _RECORDS):
            return 0
        batch = message.table(2)
        if kind == _DICTIONARY:
            batch = batch.table(1)
        buffers = batch.structs(2, "<qq")
        if not batch.has(3):
            return block.body_bytes
    except struct.error as error:
        raise LayoutError("metadata that are cut") from error
    total = 0
    for offset, length in buffers:
        if length >= 8:
            stream.seek(block.offset + block.metadata_bytes + max(0, offset))
            prefix = stream.read(8)
            claimed = struct.unpack("<q", prefix)[0] if len(prefix) == 8 else -1
            total += max(claimed, length - 8)  # -1: this buffer is not compressed
    return total


def _check_within(block: Block, num_bytes: int) -> None:
    if min(block.offset, block.metadata_bytes, block.body_bytes) < 0 or block.metadata_bytes > MAX_METADATA_BYTES:
        raise LayoutError("a message of an impossible length")
    if block.offset + block.metadata_bytes + block.body_bytes > num_bytes:
        raise LayoutError("a message that goes beyond the file's end; the file is truncated")


class _Table:
    """A table of a flatbuffer; reading beyond its end raises struct.error."""

    def __init__(self, data: bytes, position: int | None = None) -> None:
        self._data = data
        self._position = self._at("<I", 0) if position is None else position

    def has(self, field: int) -> bool:
        return bool(self._field(field))

    def scalar(self, field: int, format_: str, default: int) -> int:
        position = self._field(field)
        return self._at(format_, position) if position else default

    def table(self, field: int) -> _Table:
        position = self._field(field)
        if not position:
            raise struct.error("no such field")
        return _Table(self._data, position + self._at("<I", position))

    def structs(self, field: int, format_: str) -> list[tuple[int, ...]]:
        position = self._field(field)
        if not position:
            return []
        start = position + self._at("<I", position)
        size = struct.calcsize(format_)
        count = self._at("<I", start)
        if start + 4 + count * size > len(self._data):
            raise struct.error("a vector that is cut")
        return [struct.unpack_from(format_, self._data, start + 4 + index * size) for index in range(count)]

    def _field(self, field: int) -> int:
        """Where a field lies; 0 where it is not given."""
        vtable = self._position - self._at("<i", self._position)
        if vtable < 0 or 4 + 2 * field + 2 > self._at("<H", vtable):
            return 0
        found = self._at("<H", vtable + 4 + 2 * field)
        return self._position + found if found else 0

    def _at(self, format_: str, position: int) -> int:
        if position < 0:
            raise struct.error("before the start")
        return int(struct.unpack_from(format_, self._data, position)[0])
