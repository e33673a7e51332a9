"""What readers hand on: rows, good or rejected, and the reasons for which a row is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

EXCERPT_CHARACTERS = 200


class Reason(StrEnum):
    """Why a row is dropped; a filter's reason is its name."""

    EMPTY = "empty_text"
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
    IN_EVALUATION_SET = "in_evaluation_set"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file. A rejected one has a reason, and in `text` what there is to show of it."""

    number: int
    """From 1: the line of a text or JSONL file, the record of a CSV (its header not counted) or Parquet file."""
    text: str
    label: str = ""
    reason: str | None = None


def excerpt(text: str) -> str:
    """The start of `text`, at most 200 characters, in valid Unicode."""
    return text[:EXCERPT_CHARACTERS].encode("utf-8", "backslashreplace").decode()[:EXCERPT_CHARACTERS]
