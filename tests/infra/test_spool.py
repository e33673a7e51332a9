"""The spool: what is appended is read once, line by line, whatever is in it and whoever died while writing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.tracking.spool import Spool


def end(run: str) -> dict[str, object]:
    return {"kind": "end", "id": run, "status": "FINISHED", "end_time": 1}


def ids(spool: Spool, *, final: bool = False) -> list[str]:
    return [line.message["id"] if line.message else "damaged" for line in spool.read(final=final)]


def test_spool_reads_what_was_appended_from_where_it_was_delivered(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append(end("一"))
    spool.append(end("2"))
    (first,) = spool.read(1)
    assert first.message == end("一")
    spool.advance(first.end, {"一": "r"})
    later = Spool(tmp_path / "r.jsonl")
    assert (ids(later), later.run_ids) == (["2"], {"一": "r"})


def test_a_spool_that_another_process_delivered_and_removed_has_nothing_left(tmp_path: Path) -> None:
    mine, other = Spool(tmp_path / "r.jsonl"), Spool(tmp_path / "r.jsonl")
    mine.append(end("1"))
    other.advance(other.read()[-1].end, {})
    assert (ids(mine), mine.pending_bytes) == ([], 0)
    other.remove()
    assert (ids(mine), mine.pending_bytes) == ([], 0)


def test_a_line_torn_by_a_kill_stays_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.path.write_bytes(b'{"kind": "en')
    assert (ids(spool), ids(spool, final=True)) == ([], ["damaged"])
    Spool(tmp_path / "r.jsonl").append(end("2"))
    assert ids(spool) == ["damaged", "2"]


@pytest.mark.parametrize(
    "poison",
    [
        {"kind": "metrics", "id": "r"},
        {"kind": "metrics", "id": "r", "points": [["loss", 1.0, 1]]},
        {"kind": "metrics", "id": "r", "points": [["loss", 1.0, 2**63, 1]]},
        {"kind": "metrics", "id": "r", "points": [[None, 1.0, 1, 1]]},
        {"kind": "end", "id": "r", "status": "SOMEHOW", "end_time": 1},
        {"kind": "end", "id": "r", "status": "FINISHED", "end_time": 2**70},
        {"kind": "text", "id": "r", "name": "../../x", "text": ""},
        {"kind": "table", "id": "r", "name": "/../x.json", "text": "{}"},
        {"kind": "table", "id": "r", "name": "x.json", "text": {"columns": []}},
        {"kind": "experiment", "id": "r"},
        {"kind": "repair", "id": "r", "key": "k", "messages": [{"kind": "end"}]},
        [],
    ],
)
def test_a_line_that_could_never_be_applied_is_damaged_and_stops_nothing(tmp_path: Path, poison: object) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append(end("1"))
    with spool.path.open("ab") as stream:
        stream.write(json.dumps(poison).encode() + b"\n" + b"[" * 100_000 + b"\n")
    spool.append(end("2"))
    assert ids(spool) == ["1", "damaged", "damaged", "2"]


def test_half_a_character_in_a_name_is_no_reason_to_lose_the_message(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append({"kind": "tags", "id": "r", "tags": {"path": b"\xc4\xe3.txt".decode("utf-8", "surrogateescape")}})
    (line,) = spool.read()
    assert line.message and line.message["tags"] == {"path": "??.txt"}
