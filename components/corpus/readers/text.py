"""Plain text: a line, a paragraph or the file is a document."""

from __future__ import annotations

from collections.abc import Iterator

from components.corpus.lines import LongLine, Utf8Lines, read_blocks, read_start, start_of
from components.corpus.rows import Document, ReadLimits, Reason, RowBatch, RowBatcher
from components.corpus.streams import CHUNK_BYTES, open_bytes, reading
from components.corpus.units import Unit

Line = str | bytes | LongLine
"""A line; one that is not UTF-8; one that is too long."""


def read_text(unit: Unit, limits: ReadLimits, document: Document) -> Iterator[RowBatch]:
    """The documents of a plain text file; see `read_batches`."""
    if document == "line":
        return _read_lines(unit, limits)
    return _read_paragraphs(unit, limits) if document == "paragraph" else _read_file(unit, limits)


def _read_lines(unit: Unit, limits: ReadLimits) -> Iterator[RowBatch]:
    rows, utf8 = RowBatcher(), Utf8Lines(unit.file)
    for offset, block in read_blocks(unit, limits, utf8):
        if isinstance(block, LongLine):
            rows.add(block.shown, reason=Reason.TOO_LONG)
        elif (lines := utf8.decode(block)) is not None:
            yield from rows.add_texts(lines)
        else:
            for line in utf8.decode_each(block, offset):
                if isinstance(line, str):
                    rows.add(line)
                else:
                    rows.add(start_of(line), reason=Reason.NOT_UNICODE)
                yield from rows.full()
    yield from rows.rest()
    utf8.check()


def _lines(unit: Unit, limits: ReadLimits, utf8: Utf8Lines) -> Iterator[Line]:
    for offset, block in read_blocks(unit, limits, utf8):
        if isinstance(block, LongLine):
            yield block
        elif (lines := utf8.decode(block)) is not None:
            yield from lines
        else:
            yield from utf8.decode_each(block, offset)


def _read_paragraphs(unit: Unit, limits: ReadLimits) -> Iterator[RowBatch]:
    rows, utf8 = RowBatcher(), Utf8Lines(unit.file)
    held: list[str] = []
    num_bytes = 0
    reason: Reason | None = None
    for line in _lines(unit, limits, utf8):
        if isinstance(line, str) and (not line or line.isspace()):
            if held:
                rows.add("\n".join(held), reason=reason)
                yield from rows.full()
            held, num_bytes, reason = [], 0, None
            continue
        if isinstance(line, str):
            num_bytes += len(line.encode()) + 1
        else:
            reason = reason or (Reason.TOO_LONG if isinstance(line, LongLine) else Reason.NOT_UNICODE)
        if num_bytes - 1 > limits.max_document_bytes:
            reason = Reason.TOO_LONG
        if reason is None or not held:
            held.append(line if isinstance(line, str) else line.shown if isinstance(line, LongLine) else start_of(line))
        elif len(held) > 1:
            held = held[:1]  # what is shown of it
    if held:
        rows.add("\n".join(held), reason=reason)
    yield from rows.rest()
    utf8.check()


def _read_file(unit: Unit, limits: ReadLimits) -> Iterator[RowBatch]:
    rows, utf8 = RowBatcher(), Utf8Lines(unit.file)
    with open_bytes(unit, limits) as stream, reading(unit.file):
        offset, chunk = read_start(stream, utf8)
        chunks, num_bytes = [chunk], len(chunk)
        while num_bytes <= limits.max_document_bytes and (chunk := stream.read(CHUNK_BYTES)):
            chunks.append(chunk)
            num_bytes += len(chunk)
    if num_bytes > limits.max_document_bytes:
        rows.add(start_of(chunks[0]), reason=Reason.TOO_LONG)
    else:
        data = b"".join(chunks)
        try:
            rows.add(data.decode())
        except UnicodeDecodeError:
            for _ in utf8.decode_each(data, offset):
                pass
            utf8.check()
            rows.add(start_of(data), reason=Reason.NOT_UNICODE)
    yield from rows.rest()
