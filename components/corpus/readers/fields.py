"""From the values of a record to a row: what is a text, a label, an id."""

from __future__ import annotations

from typing import Any

from components.corpus.normalise import clean, is_unicode
from components.corpus.rows import Reason, RowBatcher


def add_record(
    rows: RowBatcher, text: Any, label: Any = None, id: Any = None, license: Any = None, *, has_label: bool
) -> None:
    """Adds a record as a row, good or rejected.

    Args:
        rows: where it goes.
        text: value of the text's column; None where it is missing. The other values: as the text.
        label, id, license: the values of these columns.
        has_label: whether the rows are labelled.
    """
    if text is None:
        rows.add("", reason=Reason.NO_TEXT)
    elif not isinstance(text, str):
        rows.add(_shown(text), reason=Reason.TEXT_NOT_A_STRING)
    elif not is_unicode(text):
        rows.add(text, reason=Reason.NOT_UNICODE)
    elif not has_label:
        rows.add(text, id=name_of(id), license=name_of(license))
    elif label is None or label == "":
        rows.add(text, reason=Reason.NO_LABEL)
    elif (named := _label(label)) is None:
        rows.add(text, reason=Reason.LABEL_NOT_A_STRING)
    elif not is_unicode(named):
        rows.add(text, reason=Reason.LABEL_NOT_UNICODE)
    else:
        rows.add(text, label=clean(named), id=name_of(id), license=name_of(license))


def _shown(value: Any) -> str:
    """The start of what is no text, or its kind where it is nested deeper than Python writes."""
    try:
        return str(value)[:1000]
    except RecursionError:
        return type(value).__name__


def _label(value: Any) -> str | None:
    """The name of a class that was written as a string, a whole number (3 and 3.0 are one) or true or false."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, str | int) else None


def name_of(value: Any) -> str | None:
    """An id or a licence: a string or a whole number; what else there may be is none."""
    if isinstance(value, str):
        return value if is_unicode(value) else value.encode("utf-8", "backslashreplace").decode()
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
