"""The tracker actor is killed while a training sends: Ray starts it again; nothing is lost, twice or out of order."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from infra.tracking.actor import start_tracker
from infra.tracking.client import Sink, StepTracker
from infra.tracking.records import TrialRecord
from infra.tracking.tracker import Destination
from infra.tracking.writer import ID_TAG


def actor_process() -> psutil.Process | None:
    """The process of the one tracker actor of this driver's Ray."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::TrackerActor"):
                return process
        except psutil.Error:
            continue
    return None


def train(sink: Sink, steps: range) -> None:
    """What a training sends, at the pace of a fast one."""
    tracker = StepTracker(step="training", sink=sink)
    for step in steps:
        tracker.log_metrics({"train_loss": 1.0 / step}, step)
        time.sleep(0.005)


def sweep(sink: Sink, rungs: range) -> None:
    """What a sweep sends: the whole history of its trial, again after each rung."""
    tracker = StepTracker(step="sweep", sink=sink)
    for rung in rungs:
        history = tuple((step, {"accuracy": step / 100}) for step in range(1, rung + 1))
        tracker.log_trial(TrialRecord(trial_id="t0", parameters={"learning_rate": 0.1}, history=history))
        time.sleep(0.02)


def run_message(own_id: str, name: str, parent: str | None) -> dict[str, Any]:
    return {
        "kind": "run",
        "id": own_id,
        "name": name,
        "parent_id": parent,
        "start_time": 1000,
        "tags": {"told": name},
        "parameters": {},
    }


def test_a_tracker_that_is_killed_twice_goes_on(ray_cluster: Mapping[str, float], tmp_path: Path) -> None:
    import ray

    store = Destination(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", experiment="e", artifact_location=None)
    tracker = start_tracker("r", tmp_path, store, [])
    tracker.put(run_message("r", "top", None))
    for name in ("training", "sweep"):
        tracker.put(run_message(f"r/{name}", name, "r"))
    remote = ray.remote(num_cpus=0, max_retries=0)
    sent = [remote(train).remote(tracker.sink, range(1, 400)), remote(sweep).remote(tracker.sink, range(1, 60))]
    spool = tmp_path / "r.jsonl"
    for again in ([], [remote(train).remote(tracker.sink, range(300, 600))]):
        while not spool.exists() or spool.read_bytes().count(b"train_loss") < 50:
            time.sleep(0.01)
        before = actor_process()
        assert before is not None
        before.kill()
        tracker.put({"kind": "tags", "id": "r", "tags": {f"while it was dead {len(again)}": "yes"}})
        sent += again
        while (after := actor_process()) is None or after.pid == before.pid:
            time.sleep(0.05)
    ray.get(sent)
    sent = [remote(sweep).remote(tracker.sink, range(50, 80))]  # a step that is tried again
    ray.get(sent)
    for name in ("training", "sweep"):
        tracker.put({"kind": "end", "id": f"r/{name}", "status": "FINISHED", "end_time": 9000})
    delivery = tracker.finish(60)
    assert delivery.complete and not delivery.kept_aside, delivery
    assert set(delivery.run_ids) == {"r", "r/training", "r/sweep", "r/sweep/t0"}

    writer = store.open()
    runs = {run.data.tags[ID_TAG]: run for run in writer.client.search_runs([writer.experiment_id])}
    assert {own_id: run.info.run_id for own_id, run in runs.items()} == delivery.run_ids
    assert runs["r"].data.tags["while it was dead 0"] == runs["r"].data.tags["while it was dead 1"] == "yes"
    for own_id, parent, name in (
        ("r/training", "r", "training"),
        ("r/sweep", "r", "sweep"),
        ("r/sweep/t0", "r/sweep", "t0"),
    ):
        run = runs[own_id]
        assert (run.info.run_name, run.info.status) == (name, "FINISHED")
        assert run.data.tags["mlflow.parentRunId"] == runs[parent].info.run_id
    for own_id, metric, number in (("r/training", "train_loss", 599), ("r/sweep/t0", "accuracy", 79)):
        history = writer.client.get_metric_history(runs[own_id].info.run_id, metric)
        assert sorted(point.step for point in history) == list(range(1, number + 1))
