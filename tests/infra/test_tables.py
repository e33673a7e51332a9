"""Tables reach MLflow whole and once, in the form that its page and `load_table` read."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.tracking.client import StepTracker
from infra.tracking.messages import repair
from infra.tracking.records import RECORDS
from infra.tracking.tracker import Destination, Tracker
from infra.tracking.writer import TABLES_TAG, Writer

COLUMNS = ["step", "prompt", "continuation"]
ROWS = [[10, '"一" <s>', "a\nb"], [10, "it", ""], [20, "it", "is"]]


@pytest.fixture(scope="module")
def destination(store: Destination) -> Destination:
    return replace(store, experiment="tables")


class TrackerSink:
    """Hands messages to a tracker in this process."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def send(self, kind: str, step: str, payload: dict[str, Any]) -> None:
        self.tracker.receive(kind, step, payload)


def loaded(writer: Writer, run_id: str, name: str) -> tuple[list[str], list[list[Any]]]:
    frame = writer.client.load_table(writer.experiment_id, name, run_ids=[run_id])
    return list(frame.columns), frame.values.tolist()


def test_a_table_that_grows_is_there_once_and_whole(tmp_path: Path, destination: Destination) -> None:
    tracker = Tracker("grown", tmp_path, destination)
    step = StepTracker(step="s", sink=TrackerSink(tracker))
    for number in (2, 3, 2, 3):  # a resumed training sends an earlier state again
        step.log_table("samples.json", {"columns": COLUMNS, "data": ROWS[:number]})
    step.log_table("other.json", {"columns": ["a"], "data": [[1]]})
    delivery = tracker.flush(60)
    tracker.close()
    assert delivery.complete and not delivery.kept_aside
    writer, run_id = destination.open(), delivery.run_ids["grown/s"]
    assert loaded(writer, run_id, "samples.json") == (COLUMNS, ROWS)
    assert loaded(writer, run_id, "other.json") == (["a"], [[1]])
    told = json.loads(writer.client.get_run(run_id).data.tags[TABLES_TAG])
    assert told == [{"path": name, "type": "table"} for name in ("samples.json", "other.json")]


def test_a_table_of_an_artifact_comes_back_with_a_repair(tmp_path: Path, destination: Destination) -> None:
    (tmp_path / "samples.json").write_text(json.dumps({"columns": COLUMNS, "data": ROWS}), encoding="utf-8")
    (tmp_path / "manifest.json").write_text("{}")
    (record,) = RECORDS.validate_python([{"type": "table", "path": "samples.json"}])
    manifest = {
        "step": "s",
        "key": "7" * 32,
        "made_by_run": "lost",
        "config": {"a": 1},
        "inputs": {},
        "raw": {},
        "tags": {},
        "metrics": {"validation_loss/a b": 1.5, "validation_loss/源-1.x": 2.5},
        "measured": {},
        "records": [record.model_dump()],
        "started_at": time.time(),
        "finished_at": time.time(),
    }
    writer = destination.open()
    for _ in range(2):
        writer.apply(repair(manifest, tmp_path, tmp_path))
    run_id = str(writer.find_step("7" * 32))
    assert loaded(writer, run_id, "samples.json") == (COLUMNS, ROWS)
    found = writer.client.get_run(run_id).data.metrics
    assert (found["validation_loss/a b"], found["validation_loss/源-1.x"]) == (1.5, 2.5)
