"""What readers hand on: rows, good or rejected, in batches of columns; and the reasons for which a row is dropped.

A batch has at most 1,024 rows and about 1 MiB of text, or one document where that is longer: six lists instead of
1,024 objects, which is what makes short lines cheap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

EXCERPT_CHARACTERS = 200
BATCH_ROWS = 1024
BATCH_BYTES = 1 << 20
Document = Literal["line", "paragraph", "file"]
"""What a document of a plain text file is."""


class Reason(StrEnum):
    """Why a row is dropped; a filter's reason is its name."""

    EMPTY = "empty_text"
    TOO_LONG = "document_too_long"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    NOT_CSV = "not_csv"
    WRONG_NUMBER_OF_FIELDS = "wrong_number_of_fields"
    NO_TEXT = "text_missing"
    TEXT_NOT_A_STRING = "text_not_a_string"
    NOT_UNICODE = "text_not_unicode"
    NO_LABEL = "label_missing"
    LABEL_NOT_A_STRING = "label_not_a_string"
    LABEL_NOT_UNICODE = "label_not_unicode"
    LABEL_NOT_IN_TASK = "label_not_in_task"
    NOT_SAMPLED = "not_sampled"
    DUPLICATE = "duplicate"
    IN_OTHER_SPLIT = "in_other_split"
    NEAR_DUPLICATE = "near_duplicate"
    IN_EVALUATION_SET = "in_evaluation_set"
    OVERLAPS_EVALUATION = "overlaps_evaluation"


@dataclass(frozen=True, slots=True)
class Columns:
    """The fields of a row, by name; None where it is not asked for. Plain text has none of them.

    In JSONL `meta.id` is the field of that name, or else the field `id` of the object `meta`.
    """

    text: str = "text"
    label: str | None = None
    id: str | None = None
    license: str | None = None

    def named(self) -> list[str]:
        """Those that are asked for: text, label, id, license, in this order."""
        return [name for name in (self.text, self.label, self.id, self.license) if name is not None]


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """What a file may take of memory and time."""

    max_document_bytes: int = 64 << 20
    """A longer line, record or value is a reject, and is not held in memory."""
    max_decompressed_bytes: int = 64 << 30
    """A file that decompresses to more is an error."""
    where: str = "corpus"
    """The part of the config that has the two keys, for messages."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a unit. A rejected one has a reason, and in `text` what there is to show of it."""

    number: int
    """From 1 within the unit: the line of a text or JSONL file, the record of a CSV (its header not counted), Parquet
    or Arrow file, the paragraph where those are the documents."""
    text: str
    label: str = ""
    reason: str | None = None
    id: str | None = None
    license: str | None = None


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Consecutive rows as columns of the same length; see `Row`."""

    numbers: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    ids: list[str | None] = field(default_factory=list)
    licenses: list[str | None] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self) -> Iterator[Row]:
        """The same, one by one."""
        columns = (self.numbers, self.texts, self.labels, self.reasons, self.ids, self.licenses)
        return map(Row, *columns)

    @classmethod
    def of_texts(cls, first_number: int, texts: list[str]) -> RowBatch:
        """Good rows that have nothing but a text."""
        nothing: list[str | None] = [None] * len(texts)
        numbers = list(range(first_number, first_number + len(texts)))
        return cls(numbers, texts, nothing, nothing[:], [""] * len(texts), nothing[:])


class RowBatcher:
    """Collects rows into batches, and numbers them."""

    def __init__(self) -> None:
        self.num_rows = 0
        self._num_characters = 0
        self._batch = RowBatch()

    def add(
        self,
        text: str,
        *,
        reason: str | None = None,
        label: str = "",
        id: str | None = None,
        license: str | None = None,
    ) -> None:
        """One row; the text of a rejected one is cut to an excerpt."""
        self.num_rows += 1
        self._num_characters += len(text)
        batch = self._batch
        batch.numbers.append(self.num_rows)
        batch.texts.append(text if reason is None else excerpt(text))
        batch.ids.append(id)
        batch.licenses.append(license)
        batch.labels.append(label)
        batch.reasons.append(reason)

    @property
    def is_full(self) -> bool:
        """Whether what was collected is a batch."""
        return len(self._batch.numbers) >= BATCH_ROWS or self._num_characters >= BATCH_BYTES

    def full(self) -> Iterator[RowBatch]:
        """What was collected, if that is a batch."""
        if self.is_full:
            yield from self.rest()

    def rest(self) -> Iterator[RowBatch]:
        """What was collected."""
        if self._batch.numbers:
            batch, self._batch, self._num_characters = self._batch, RowBatch(), 0
            yield batch

    def add_texts(self, texts: list[str]) -> Iterator[RowBatch]:
        """Good rows that have nothing but a text, as batches; what was collected before them comes first."""
        yield from self.rest()
        for start in range(0, len(texts), BATCH_ROWS):
            part = texts[start : start + BATCH_ROWS]
            batch = RowBatch.of_texts(self.num_rows + 1, part)
            self.num_rows += len(part)
            yield batch


def excerpt(text: str) -> str:
    """The start of `text`, at most 200 characters, in valid Unicode."""
    return text[:EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode()[:EXCERPT_CHARACTERS]
