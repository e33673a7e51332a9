"""Bytes cut into lines, without ever holding more than one document, and a count of those that are not UTF-8.

Only line feeds end a line, so U+2028 in a JSON string does not. Lines come as blocks of about 1 MiB, since to decode
a block is 1.7 times as fast as to decode each line of it. A line that is too long is skipped in chunks, and told.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from components.corpus.rows import EXCERPT_CHARACTERS, ReadLimits
from components.corpus.streams import CHUNK_BYTES, RangeReader, Readable, open_bytes, opened, reading
from components.corpus.units import Unit
from infra.errors import DataError
from infra.storage.raw import RawFile

MIN_LINES_NOT_UTF8 = 10
"""With fewer, a file of another encoding is not told from one with some bad lines."""
SHOWN_BYTES = 4 * EXCERPT_CHARACTERS
"""What is kept of a line that is too long or not UTF-8."""
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@dataclass(slots=True)
class LongLine:
    """A line that was too long to be held."""

    start: bytes
    """Its first bytes."""
    num_quotes: int = 0
    """How many double quotes it has."""

    @property
    def shown(self) -> str:
        """Its start as text."""
        return start_of(self.start)


Block = bytes | LongLine
"""Whole lines, with line feeds between them and none after the last; or one line that is too long."""


class Utf8Lines:
    """Decodes blocks of one unit, and tells at its end whether the file is in another encoding."""

    def __init__(self, file: RawFile) -> None:
        self._file = file
        self._num_lines = 0
        self._num_bad = 0
        self._first: tuple[int, bytes] | None = None

    def decode(self, block: bytes) -> list[str] | None:
        """The lines of a block; None where one is not UTF-8: see `decode_each`."""
        try:
            lines = block.decode().split("\n")
        except UnicodeDecodeError:
            return None
        self._num_lines += len(lines) - lines.count("")
        return lines

    def decode_whole(self, block: bytes) -> str | None:
        """The same in one piece, where blank lines need not be told from others."""
        try:
            text = block.decode()
        except UnicodeDecodeError:
            return None
        self._num_lines += text.count("\n") + 1
        return text

    def decode_each(self, block: bytes, offset: int) -> Iterator[str | bytes]:
        """The lines of a block that lies at byte `offset`; those that are not UTF-8 stay bytes."""
        for line in block.split(b"\n"):
            yield self.decode_line(line, offset)
            offset += len(line) + 1

    def decode_line(self, line: bytes, offset: int) -> str | bytes:
        """One line."""
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            self._num_lines += 1
            self._num_bad += 1
            if self._first is None:
                self._first = offset + error.start, line[error.start : error.start + SHOWN_BYTES]
            return line
        self._num_lines += bool(text)
        return text

    def count_good(self, num_lines: int) -> None:
        """Counts non-empty lines that are UTF-8."""
        self._num_lines += num_lines

    def check(self) -> None:
        """Raises DataError if at least half of the non-empty lines, and at least ten, are not UTF-8."""
        if self._num_bad >= max(MIN_LINES_NOT_UTF8, self._num_lines / 2):
            self.refuse()

    def refuse(self) -> None:
        """Raises DataError if any line is not UTF-8."""
        if self._first is not None:
            raise self.error(*self._first)

    def error(self, position: int, line: bytes, encoding: str | None = None) -> DataError:
        """What to do about `line`, which lies at byte `position` and begins with a byte that is not UTF-8."""
        where = " of the decompressed text" if self._file.compression else ""
        return DataError(
            f"{self._file.name}: not UTF-8 at byte {position}{where} (0x{line[0]:02x}); convert it, for example: "
            f"iconv -f {encoding or _guess(line)} -t UTF-8"
        )


def _guess(line: bytes) -> str:
    """GB18030, unless the bytes cannot be that."""
    try:
        codecs.getincrementaldecoder("gb18030")().decode(line, len(line) < SHOWN_BYTES)  # a longer one was cut
    except UnicodeDecodeError:
        return "WINDOWS-1252"
    return "GB18030"


def start_of(line: bytes) -> str:
    """What there is to show of a line that is not UTF-8."""
    return line[:SHOWN_BYTES].decode(errors="backslashreplace")


def read_blocks(unit: Unit, limits: ReadLimits, utf8: Utf8Lines) -> Iterator[tuple[int, Block]]:
    """The lines of `unit` in blocks, each with the byte of the (decompressed) file at which it lies.

    A byte order mark of UTF-8 at the start of the file is taken off.

    Raises:
        DataError: damaged compressed data, a byte order mark of UTF-16 or UTF-32.
        StorageError: the file cannot be read.
    """
    if unit.end is not None:
        with opened(unit) as raw, reading(unit.file):
            source = RangeReader(raw, unit.start, unit.end)
            yield from _blocks(source, source.position, limits.max_document_bytes, utf8)
    else:
        with open_bytes(unit, limits) as stream, reading(unit.file):
            yield from _blocks(stream, 0, limits.max_document_bytes, utf8)


def _blocks(stream: Readable, offset: int, max_bytes: int, utf8: Utf8Lines) -> Iterator[tuple[int, Block]]:
    held: list[bytes] = []
    num_held = 0
    long: LongLine | None = None
    if offset == 0:
        offset, chunk = read_start(stream, utf8)
    else:
        chunk = stream.read(CHUNK_BYTES)
    while chunk:
        rest = chunk
        if long is not None:
            line, newline, rest = chunk.partition(b"\n")
            long.num_quotes += line.count(b'"')
            offset += len(line) + len(newline)
            if newline:
                yield offset, long
                long = None
        complete, newline, rest = rest.rpartition(b"\n") if long is None else (b"", b"", b"")
        if newline:
            block = b"".join((*held, complete))
            yield from _checked(block, offset, max_bytes)
            offset += len(block) + 1
            held, num_held = [], 0
        if rest:
            held.append(rest)
            num_held += len(rest)
        if num_held > max_bytes:
            long = LongLine(b"".join(held)[:SHOWN_BYTES], sum(part.count(b'"') for part in held))
            offset += num_held
            held, num_held = [], 0
        chunk = stream.read(CHUNK_BYTES)
    if long is not None:
        yield offset, long
    elif held:
        yield from _checked(b"".join(held), offset, max_bytes)


def read_start(stream: Readable, utf8: Utf8Lines) -> tuple[int, bytes]:
    """The first chunk of a file without the mark of UTF-8, and how long that was.

    Raises:
        DataError: the mark of another encoding.
    """
    chunk = stream.read(CHUNK_BYTES)
    while 0 < len(chunk) < len(codecs.BOM_UTF32_LE) and (more := stream.read(CHUNK_BYTES)):
        chunk += more
    for mark, encoding in _MARKS.items():
        if chunk.startswith(mark):
            raise utf8.error(0, chunk, encoding)
    if chunk.startswith(codecs.BOM_UTF8):
        return len(codecs.BOM_UTF8), chunk[len(codecs.BOM_UTF8) :]
    return 0, chunk


def _checked(block: bytes, offset: int, max_bytes: int) -> Iterator[tuple[int, Block]]:
    """The block, its lines that are too long apart."""
    if len(block) <= max_bytes:
        yield offset, block
        return
    start = position = 0
    for line in block.split(b"\n"):
        if len(line) > max_bytes:
            if position > start:
                yield offset + start, block[start : position - 1]
            yield offset + position, LongLine(line[:SHOWN_BYTES], line.count(b'"'))
            start = position + len(line) + 1
        position += len(line) + 1
    if start < len(block) + 1:
        yield offset + start, block[start:]
