"""The spool and the writer: everything arrives once, whatever happens in between. Real MLflow on SQLite."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest

from infra.tracking.messages import raw_inputs
from infra.tracking.spool import Spool
from infra.tracking.tracker import Destination, Tracker, Uploader
from infra.tracking.writer import ID_TAG, Writer


@pytest.fixture(scope="module")
def destination(tmp_path_factory: pytest.TempPathFactory) -> Destination:
    root = tmp_path_factory.mktemp("mlflow")
    return Destination(uri=f"sqlite:///{root / 'mlflow.db'}", experiment="toy", artifact_location=(root / "a").as_uri())


def run_message(run: str, parent: str | None = None) -> dict[str, object]:
    return {
        "kind": "run",
        "id": run,
        "parent_id": parent,
        "name": run,
        "start_time": 1000,
        "tags": {"a": "b"},
        "parameters": {"x": 1},
    }


def test_spool_reads_what_was_appended_from_where_it_was_delivered(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append({"kind": "end", "id": "一"})
    spool.append({"kind": "end", "id": "2"})
    first, position = spool.read(1)
    spool.advance(position)
    assert [m["id"] for m in first] == ["一"]
    assert [m["id"] for m in Spool(tmp_path / "r.jsonl").read()[0]] == ["2"]


def test_a_damaged_line_is_kept_aside_and_the_rest_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append({"kind": "end", "id": "1"})
    with spool.path.open("ab") as stream:
        stream.write(b'{"kind": "end", "i\n')
    spool.append({"kind": "end", "id": "3"})
    assert [m["id"] for m in spool.read()[0]] == ["1", "3"]
    assert (tmp_path / "r.damaged").read_bytes() == b'{"kind": "end", "i\n'


def test_a_line_torn_by_a_kill_stays_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.path.write_bytes(b'{"kind": "en')
    assert spool.read() == ([], 0)
    Spool(tmp_path / "r.jsonl").append({"kind": "end", "id": "2"})
    assert [m["id"] for m in spool.read()[0]] == ["2"]


def test_a_message_delivered_twice_changes_nothing(destination: Destination) -> None:
    writer = destination.open()
    messages = [
        run_message("p"),
        run_message("p/s", "p"),
        {"kind": "metrics", "id": "p/s", "points": [["loss", 1.5, 1, 5000], ["loss", 1.0, 2, 6000]]},
        {
            "kind": "prompt",
            "id": "p/s",
            "key": "k",
            "record": {"type": "prompt", "name": "toy", "template": "{{text}}"},
        },
        {"kind": "end", "id": "p/s", "status": "FINISHED", "end_time": 7000},
    ]
    for message in messages:
        writer.apply(message)
    again = destination.open()
    for message in messages:
        again.apply(message)
    runs = again.client.search_runs([again.experiment_id], f"tags.`{ID_TAG}` LIKE 'p%'")
    assert len(runs) == 2
    child = next(r for r in runs if r.data.tags[ID_TAG] == "p/s")
    parent = next(r for r in runs if r.data.tags[ID_TAG] == "p")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert [m.value for m in again.client.get_metric_history(child.info.run_id, "loss")] == [1.5, 1.0]
    assert child.info.status == "FINISHED"
    prompt = again.client.search_prompt_versions("toy")
    assert len(list(getattr(prompt, "model_versions", None) or prompt)) == 1


def test_raw_files_are_inputs_with_their_rows(destination: Destination) -> None:
    """A quote in a path stays data; rows that nobody counted are left out; twice is once."""
    files = [{"path": '/d/a "b".csv', "sha256": "a" * 64, "num_rows": 54}, {"path": "/d/old.csv", "sha256": "b" * 64}]
    for _ in range(2):
        writer = destination.open()
        writer.apply(run_message("rows"))
        for message in raw_inputs("rows", {"train": files}):
            writer.apply(message)
    run = writer.client.get_run(str(writer.find_run("rows")))
    found = {one.dataset.name: (one.dataset, {t.key: t.value for t in one.tags}) for one in run.inputs.dataset_inputs}
    assert set(found) == {'train:a "b".csv', "train:old.csv"} and len(run.inputs.dataset_inputs) == 2
    dataset, tags = found['train:a "b".csv']
    assert (json.loads(dataset.profile), tags["num_rows"]) == ({"num_rows": 54}, "54")
    assert json.loads(dataset.source) == {"uri": '/d/a "b".csv'}
    assert found["train:old.csv"][0].profile is None and "num_rows" not in found["train:old.csv"][1]


def test_points_that_a_resumed_training_sends_again_are_dropped(tmp_path: Path, destination: Destination) -> None:
    tracker = Tracker("resumed", tmp_path, destination)
    tracker.put(run_message("resumed/s"))
    for step in (1, 2, 3, 2, 3, 4):
        tracker.receive("metrics", "s", {"metrics": {"loss": float(step)}, "step": step, "time": time.time()})
    delivery = tracker.flush(60)
    tracker.close()
    assert delivery.complete and not list(tmp_path.glob("*.jsonl"))
    client = destination.open().client
    history = client.get_metric_history(delivery.run_ids["resumed/s"], "loss")
    assert [m.step for m in history] == [1, 2, 3, 4]


def test_a_message_that_mlflow_refuses_is_kept_and_the_rest_arrives(tmp_path: Path, destination: Destination) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append(run_message("refused"))
    spool.append({**run_message("refused"), "parameters": {"x": 2}})  # a parameter cannot change
    spool.append({"kind": "end", "id": "refused", "status": "FINISHED", "end_time": 1})
    uploader = Uploader(spool, destination, tmp_path / "lock")
    assert uploader.deliver() and uploader.rejected == 1
    assert json.loads((tmp_path / "r.rejected").read_text())["message"]["parameters"] == {"x": 2}
    assert destination.open().client.get_run(uploader.run_ids["refused"]).info.status == "FINISHED"


def test_a_server_that_is_away_costs_only_delay(tmp_path: Path, destination: Destination) -> None:
    away = Destination(uri="http://127.0.0.1:9", experiment="toy", artifact_location=None)
    tracker = Tracker("late", tmp_path, away)
    started = time.monotonic()
    tracker.put(run_message("late"))
    tracker.receive("metrics", "s", {"metrics": {"loss": 1.0}, "step": 1, "time": 1.0})
    assert time.monotonic() - started < 0.5
    delivery = tracker.flush(1)
    tracker.close()
    assert not delivery.complete and delivery.error
    later = Uploader(Spool(tmp_path / "late.jsonl"), destination, tmp_path / "writer.lock")
    assert later.deliver(final=True) and "late" in later.run_ids


def _open(destination: Destination, lock: Path, results: multiprocessing.Queue[str]) -> None:
    spool = Spool(lock.parent / f"{multiprocessing.current_process().pid}.jsonl")
    spool.append(run_message(spool.path.stem))
    uploader = Uploader(spool, destination, lock)
    deadline = time.monotonic() + 120
    while not uploader.deliver() and time.monotonic() < deadline:
        time.sleep(0.2)
    results.put(uploader.error or "delivered")


def test_several_processes_that_meet_a_fresh_store_do_not_break_it(tmp_path: Path) -> None:
    fresh = Destination(uri=f"sqlite:///{tmp_path / 'new.db'}", experiment="e", artifact_location=None)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_open, args=(fresh, tmp_path / "writer.lock", results)) for _ in range(3)]
    for process in processes:
        process.start()
    outcomes = [results.get(timeout=150) for _ in processes]
    for process in processes:
        process.join()
    assert outcomes == ["delivered"] * 3
    writer = Writer(fresh.uri, "e", None)
    assert len(writer.client.search_runs([writer.experiment_id])) == 3


def test_a_models_last_metrics_do_not_stand_in_its_curve_twice(tmp_path: Path, destination: Destination) -> None:
    tracker = Tracker("twice", tmp_path, destination)
    tracker.put(run_message("twice/s"))
    tracker.receive("metrics", "s", {"metrics": {"train_loss": 2.0}, "step": 20, "time": 1.0})
    tracker.put(
        {"kind": "metrics", "id": "twice/s", "points": [["train_loss", 2.0, 20, 9000], ["flops", 1.0, 20, 9000]]}
    )
    run_id = tracker.flush(60).run_ids["twice/s"]
    tracker.close()
    client = destination.open().client
    assert [len(client.get_metric_history(run_id, name)) for name in ("train_loss", "flops")] == [1, 1]
