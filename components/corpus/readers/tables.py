"""Record batches of Parquet and Arrow files as rows, without trusting what they claim.

A dictionary of one value of 60 MB and a million indices is 60 TB of text in a file of 4 MB. So columns of text are
measured before they are decoded, and decoded in runs of 16 MiB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.corpus.lines import SHOWN_BYTES, LongLine, start_of
from components.corpus.readers.delimited import column_places
from components.corpus.readers.fields import add_record, name_of
from components.corpus.rows import BATCH_ROWS, Columns, ReadLimits, Reason, RowBatch, RowBatcher
from components.corpus.streams import raise_too_large
from infra.errors import DataError
from infra.storage.raw import RawFile

RUN_BYTES = 16 << 20
MAX_NAME_BYTES = 1 << 16
"""A longer id, licence or label is none."""


def wanted_columns(file: RawFile, schema: pa.Schema, columns: Columns) -> list[int]:
    """Where the columns stand in the schema, in the order of `columns.named()`.

    Raises:
        DataError: one is missing, or the text is no text.
    """
    places = column_places(file, schema.names, columns)
    found = schema.field(places[0]).type
    if not is_text(found):
        raise DataError(
            f"{file.name}: column {columns.text} is {found}, not a string; name the column of the text in text_column"
        )
    return places


def is_text(type_: pa.DataType) -> bool:
    """Whether values of the type are strings."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


class TableRows:
    """Gives the rows of record batches, one after the other."""

    def __init__(self, file: RawFile, columns: Columns, limits: ReadLimits) -> None:
        self._file, self._columns, self._limits = file, columns, limits
        self._num_bytes = 0
        self.rows = RowBatcher()

    def batches(self, arrays: list[pa.Array]) -> Iterator[RowBatch]:
        """The rows of one record batch.

        Args:
            arrays: the columns `columns.named()`.

        Raises:
            ArrowInvalid: the batch is damaged.
            DataError: the file has more text than it may decompress to.
        """
        for start in range(0, len(arrays[0]), BATCH_ROWS):
            yield from self._some([array.slice(start, BATCH_ROWS) for array in arrays])

    def _some(self, arrays: list[pa.Array]) -> Iterator[RowBatch]:
        columns, rows, texts = self._columns, self.rows, arrays[0]
        found = dict(zip(columns.named()[1:], map(_names, arrays[1:]), strict=True))
        nothing = [None] * len(texts)
        labels, ids, licenses = (
            nothing if name is None else found[name] for name in (columns.label, columns.id, columns.license)
        )
        done = 0
        for values, num_bytes in text_runs(texts, self._limits.max_document_bytes):
            self._num_bytes += num_bytes
            raise_too_large(self._file, self._num_bytes, self._limits)
            if columns.label is None and set(map(type, values)) == {str}:
                yield from rows.rest()
                batch = RowBatch.of_texts(rows.num_rows + 1, values)
                batch.ids[:] = map(name_of, ids[done : done + len(values)])
                batch.licenses[:] = map(name_of, licenses[done : done + len(values)])
                rows.num_rows += len(values)
                yield batch
            else:
                for position, value in enumerate(values, done):
                    if isinstance(value, LongLine):
                        rows.add(value.shown, reason=Reason.TOO_LONG)
                    elif isinstance(value, bytes):
                        rows.add(start_of(value), reason=Reason.NOT_UNICODE)
                    else:
                        side = (labels[position], ids[position], licenses[position])
                        add_record(rows, value, *side, has_label=columns.label is not None)
                yield from rows.full()
            done += len(values)


def _names(array: pa.Array) -> list[Any]:
    """Labels, ids or licences: strings, numbers or true and false; what is nested or long is ()."""
    if is_text(array.type):
        return [
            value if isinstance(value, str) or value is None else ()
            for run, _ in text_runs(array, MAX_NAME_BYTES)
            for value in run
        ]
    array.validate(full=True)
    if pa.types.is_nested(array.type) or pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        return [()] * len(array)
    return list(array.to_pylist())


def text_runs(array: pa.Array, max_bytes: int) -> Iterator[tuple[list[Any], int]]:
    """The values of a column of text, about 16 MiB at a time, and how many bytes they have.

    Returns:
        Lists of strings; None where there is none, bytes where it is not UTF-8, and a `LongLine` where it is too long.
    """
    array = _as_bytes(array)
    lengths = _lengths(array)
    if not len(lengths) or (int(lengths.max()) <= max_bytes and int(lengths.sum()) <= RUN_BYTES):
        yield _decoded(array), int(lengths.sum())
        return
    start = held = 0
    for position, length in enumerate(lengths.tolist()):
        if position > start and (length > max_bytes or held + length > RUN_BYTES):
            yield _decoded(array.slice(start, position - start)), held
            start, held = position, 0
        held += length
        if length > max_bytes:
            yield [LongLine(_start(array, position))], 0
            start, held = position + 1, 0
    if start < len(array):
        yield _decoded(array.slice(start)), held


def _as_bytes(array: pa.Array) -> pa.Array:
    """The same values as bytes, after a look at whether offsets and indices lead to where they may."""
    array.validate()
    if pa.types.is_dictionary(array.type):
        array = pa.DictionaryArray.from_arrays(array.indices, _as_bytes(array.dictionary))
    elif pa.types.is_string_view(array.type):
        array.validate(full=True)
        array = array.cast(pa.binary_view())
    else:
        array = array.cast(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary())
    array.validate(full=True)
    return array


def _lengths(array: pa.Array) -> npt.NDArray[np.int64]:
    """Bytes of each value; 0 where there is none."""
    if pa.types.is_dictionary(array.type):
        of_values = _lengths(array.dictionary)
        indices = pc.fill_null(array.indices.cast(pa.int64()), len(of_values)).to_numpy(zero_copy_only=False)
        return np.asarray(np.append(of_values, 0)[indices], np.int64)
    if pa.types.is_binary_view(array.type):
        return np.array([0 if value.as_buffer() is None else value.as_buffer().size for value in array], np.int64)
    found = pc.fill_null(pc.binary_length(array), 0).to_numpy(zero_copy_only=False)
    return np.asarray(found, np.int64)


def _start(array: pa.Array, position: int) -> bytes:
    """The first bytes of one value, which is not copied whole."""
    if pa.types.is_dictionary(array.type):
        return _start(array.dictionary, array.indices[position].as_py())
    value = array[position].as_buffer()
    return bytes(value.slice(0, min(value.size, SHOWN_BYTES)))


def _decoded(array: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    try:
        as_text = array.cast(pa.large_string() if pa.types.is_large_binary(array.type) else pa.string())
        return list(as_text.to_numpy(zero_copy_only=False).tolist())
    except (pa.ArrowInvalid, UnicodeDecodeError):
        return [_text_or_bytes(value) for value in array.to_pylist()]


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value
