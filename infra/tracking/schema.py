"""What a message to MLflow must look like. A line of the spool that does not is damaged: it could never be applied, and
all that follows it would wait for ever."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

FIELDS: Mapping[str, Mapping[str, type]] = {
    "run": {"name": str, "tags": dict, "parameters": dict},
    "metrics": {"points": list},
    "remade": {"points": list},
    "tags": {"tags": dict},
    "datasets": {"datasets": list},
    "file": {"path": str, "folder": str},
    "text": {"name": str, "text": str},
    "table": {"name": str, "text": str},
    "lineage": {"lineage": dict, "about": str},
    "model": {"record": dict, "path": str, "key": str, "time": int},
    "prompt": {"record": dict, "key": str},
    "repair": {"key": str, "messages": list},
    "kill": {"end_time": int},
    "end": {"status": str, "end_time": int},
}
"""By kind; `id` belongs to all. What they mean: see `infra.tracking.writer`."""
STATUSES = ("FINISHED", "FAILED", "KILLED")
LARGEST = 2**63 - 1
"""What a database takes as a number."""


def is_message(value: Any) -> bool:
    """Whether `value`, read from JSON, is a whole message."""
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        return False
    fields = FIELDS.get(str(value.get("kind")))
    if fields is None or not all(isinstance(value.get(name), type_) for name, type_ in fields.items()):
        return False
    times = (value[name] for name in ("start_time", "end_time", "time") if value.get(name) is not None)
    if not all(_is_integer(time) for time in times):
        return False
    if value["kind"] in ("metrics", "remade"):
        return all(_is_point(point) for point in value["points"])
    if value["kind"] == "repair":
        return all(is_message(inner) for inner in value["messages"])
    if value["kind"] in ("text", "table"):
        return bool(value["name"]) and ".." not in PurePosixPath(value["name"]).parts
    return value["kind"] != "end" or value["status"] in STATUSES


def _is_point(value: Any) -> bool:
    """[name, value, step, milliseconds]."""
    if not isinstance(value, list) or len(value) != 4 or not isinstance(value[0], str):
        return False
    number = value[1]
    return isinstance(number, int | float) and _is_integer(value[2]) and _is_integer(value[3])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
