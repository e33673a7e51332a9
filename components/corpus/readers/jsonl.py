"""JSONL: an object a line, parsed by orjson, 2.9 times as fast as the standard library on short texts.

What orjson refuses is given to the standard library's `json`, which tells why, and which takes what orjson does not:
NaN, escapes of lone surrogates (then the text is no Unicode, which is another reason), integers of any size.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import orjson

from components.corpus.lines import LongLine, Utf8Lines, read_blocks, start_of
from components.corpus.readers.fields import add_record, name_of
from components.corpus.rows import BATCH_ROWS, Columns, ReadLimits, Reason, RowBatch, RowBatcher
from components.corpus.units import Unit
from infra.errors import DataError

EXACT_BELOW = 2.0**53
"""A larger number that orjson gives as a float may have been an integer of many digits."""
Pick = Callable[[dict[str, Any]], Any]


def read_jsonl(unit: Unit, columns: Columns, limits: ReadLimits) -> Iterator[RowBatch]:
    """The rows of a JSONL file; see `read_batches`."""
    rows, utf8 = RowBatcher(), Utf8Lines(unit.file)
    parser = _Parser(columns, rows, utf8)
    for offset, block in read_blocks(unit, limits, utf8):
        if isinstance(block, LongLine):
            rows.add(block.shown, reason=Reason.TOO_LONG)
            continue
        lines = block.split(b"\n")
        if not rows.num_rows and not unit.start and re.match(rb"\s*\[\s*(\{|$)", lines[0]):
            raise DataError(f"{unit.file.name}: one JSON array; write one JSON object a line instead (jq -c '.[]')")
        for start in range(0, len(lines), BATCH_ROWS):
            part = lines[start : start + BATCH_ROWS]
            held = list(rows.rest())  # before the batch takes its numbers
            if (batch := parser.parse_all(part)) is not None:
                yield from (*held, batch)
                offset += sum(map(len, part)) + len(part)
                continue
            yield from held
            for line in part:
                parser.parse(line, offset)
                offset += len(line) + 1
                if rows.is_full:
                    yield from rows.rest()
    yield from rows.rest()
    utf8.check()


class _Parser:
    def __init__(self, columns: Columns, rows: RowBatcher, utf8: Utf8Lines) -> None:
        self._rows, self._utf8 = rows, utf8
        self._text = _pick(columns.text)
        self._label = None if columns.label is None else _pick(columns.label)
        self._id = None if columns.id is None else _pick(columns.id)
        self._license = None if columns.license is None else _pick(columns.license)
        self._sides = tuple(pick for pick in (self._label, self._id, self._license) if pick is not None)

    def parse_all(self, lines: list[bytes]) -> RowBatch | None:
        """All lines as one batch; None where one needs to be looked at more closely."""
        if self._label is not None:
            return None
        try:
            values = list(map(orjson.loads, lines))
            if set(map(type, values)) != {dict}:
                return None
            texts = list(map(self._text, values))
        except ValueError:
            return None
        if set(map(type, texts)) != {str} or any(map(_is_inexact, (p(v) for p in self._sides for v in values))):
            return None
        batch = RowBatch.of_texts(self._rows.num_rows + 1, texts)
        if self._id is not None:
            batch.ids[:] = [name_of(self._id(value)) for value in values]
        if self._license is not None:
            batch.licenses[:] = [name_of(self._license(value)) for value in values]
        self._rows.num_rows += len(lines)
        self._utf8.count_good(len(lines))
        return batch

    def parse(self, line: bytes, offset: int) -> None:
        """One line, which lies at byte `offset`, as a row."""
        if not line:
            self._rows.add("", reason=Reason.EMPTY)
            return
        text = self._utf8.decode_line(line, offset)
        if isinstance(text, bytes):
            self._rows.add(start_of(text), reason=Reason.NOT_UNICODE)
            return
        if text.isspace():
            self._rows.add("", reason=Reason.EMPTY)
            return
        try:
            value = self._value(line, text)
        except (ValueError, RecursionError):
            self._rows.add(text, reason=Reason.NOT_JSON)
            return
        if not isinstance(value, dict):
            self._rows.add(text, reason=Reason.NOT_AN_OBJECT)
            return
        found = self._text(value)
        if found is None:
            self._rows.add(text, reason=Reason.NO_TEXT)
            return
        label, id_, license_ = (pick and pick(value) for pick in (self._label, self._id, self._license))
        add_record(self._rows, found, label, id_, license_, has_label=self._label is not None)

    def _value(self, line: bytes, text: str) -> Any:
        try:
            value = orjson.loads(line)
        except ValueError:
            return json.loads(text)
        if isinstance(value, dict) and any(_is_inexact(pick(value)) for pick in self._sides):
            return json.loads(text)
        return value


def _is_inexact(value: Any) -> bool:
    return isinstance(value, float) and abs(value) >= EXACT_BELOW


def _pick(name: str) -> Pick:
    """What finds the value of a column in an object; None where it is missing."""
    if "." not in name:
        return lambda value: value.get(name)

    def pick(value: dict[str, Any]) -> Any:
        if name in value:
            return value[name]
        found: Any = value
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    return pick
