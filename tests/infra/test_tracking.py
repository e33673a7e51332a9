"""The spool and the writer: everything arrives once, whatever happens in between. MLflow on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import multiprocessing
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.errors import UserError
from infra.tracking.champion import find_champion
from infra.tracking.messages import raw_inputs
from infra.tracking.spool import Spool
from infra.tracking.tracker import Connection, Destination, Tracker, Uploader
from infra.tracking.writer import ID_TAG, KEY_TAG


@pytest.fixture(scope="module")
def destination(store: Destination) -> Destination:
    return replace(store, experiment="tracking")


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


def end(run: str) -> dict[str, object]:
    return {"kind": "end", "id": run, "status": "FINISHED", "end_time": 1}


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
    (prompt,) = again.client.search_prompt_versions("toy")
    assert (prompt.template, prompt.tags[ID_TAG]) == ("{{text}}", "k/toy")
    assert '"toy"' in child.data.tags["mlflow.linkedPrompts"]
    assert len(again.client.search_prompts(f"experiment_id = '{again.experiment_id}' and name = 'toy'")) == 1


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


def test_points_that_are_made_again_after_a_rollback_stand_after_the_undone_ones(
    tmp_path: Path, destination: Destination
) -> None:
    """The third time is a resume: the same step made again after the rollback, to the bit."""
    tracker = Tracker("back", tmp_path, destination)
    tracker.put(run_message("back/s"))
    sent = (
        ("metrics", 1, 5.0),
        ("metrics", 2, 4.0),
        ("metrics", 3, 9.0),
        ("remade", 2, 4.5),
        ("remade", 3, 3.5),
        ("remade", 3, 3.5),
        ("metrics", 4, 3.0),
    )
    for second, (kind, step, loss) in enumerate(sent):
        tracker.receive(kind, "s", {"metrics": {"loss": loss}, "step": step, "time": float(second)})
    delivery = tracker.flush(60)
    tracker.close()
    assert delivery.complete
    client, run_id = destination.open().client, delivery.run_ids["back/s"]
    history = sorted(client.get_metric_history(run_id, "loss"), key=lambda point: point.timestamp)
    assert [(m.step, m.value) for m in history] == [(1, 5.0), (2, 4.0), (3, 9.0), (2, 4.5), (3, 3.5), (4, 3.0)]


def test_a_tracker_that_was_killed_goes_on_where_it_was(tmp_path: Path, destination: Destination) -> None:
    """The second one is as after a SIGKILL: what the first knew is in the spool alone."""
    history = [(step, {"loss": float(step)}) for step in (10, 20, 30)]
    trial = {"trial_id": "t", "parameters": {"rate": 0.1}, "status": "finished", "history": history[:2]}
    first = Tracker("again", tmp_path, destination)
    first.put(run_message("again/s"))
    first.receive("trial", "s", {"trial": trial})
    first.receive("metrics", "s", {"metrics": {"loss": 1.0}, "step": 1, "time": 1.0})
    second = Tracker("again", tmp_path, destination)
    second.receive("metrics", "s", {"metrics": {"loss": 1.0}, "step": 1, "time": 2.0})
    second.receive("metrics", "s", {"metrics": {"loss": 2.0}, "step": 2, "time": 3.0})
    second.receive("trial", "s", {"trial": {**trial, "history": history}})
    delivery = second.flush(60)
    first.close()
    second.close()
    assert delivery.complete
    client = destination.open().client
    for own_id, steps in (("again/s", [1, 2]), ("again/s/t", [10, 20, 30])):
        assert [m.step for m in client.get_metric_history(delivery.run_ids[own_id], "loss")] == steps


def test_a_point_that_comes_before_its_run_does_not_take_its_name_from_it(
    tmp_path: Path, destination: Destination
) -> None:
    """Ray keeps no order between the driver and a worker while the tracker is away: in one batch, and in two."""
    spool = Spool(tmp_path / "r.jsonl")
    uploader = Uploader(spool, Connection(destination, tmp_path / "lock"))
    point = {"kind": "metrics", "points": [["loss", 1.0, 1, 5000]]}
    child = {**run_message("early/s", "early"), "name": "s"}
    for message in ({**point, "id": "early/s"}, child, run_message("early"), {**point, "id": "late/s"}):
        spool.append(message)
    assert uploader.deliver()
    spool.append({**child, "id": "late/s"})
    assert uploader.deliver()
    client = destination.open().client
    for own_id, start_time in (("early/s", 1000), ("late/s", 5000)):
        run = client.get_run(uploader.state().run_ids[own_id])
        assert (run.info.run_name, run.data.tags["a"], run.data.params) == ("s", "b", {"x": "1"})
        assert run.data.tags["mlflow.parentRunId"] == uploader.state().run_ids["early"]
        assert (run.info.start_time, len(client.get_metric_history(run.info.run_id, "loss"))) == (start_time, 1)


def test_what_is_damaged_or_refused_is_kept_and_named_and_the_rest_arrives(
    tmp_path: Path, destination: Destination
) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    spool.append(run_message("refused"))
    spool.append({**run_message("refused"), "parameters": {"x": 2}})  # a parameter cannot change
    with spool.path.open("ab") as stream:
        stream.write(b'{"kind": "end", "i\n')
    for key, step in (("loss", 1), ("no such name?", 1), ("loss", 2)):
        spool.append({"kind": "metrics", "id": "refused", "points": [[key, 1.0, step, 1]]})
    spool.append({"kind": "end", "id": "refused", "status": "FINISHED", "end_time": 1})
    uploader = Uploader(spool, Connection(destination, tmp_path / "lock"))
    assert uploader.deliver()
    assert uploader.state().kept_aside == [
        f"2 messages that MLflow refused, kept in {tmp_path / 'r.rejected'}",
        f"1 damaged lines of the spool, kept in {tmp_path / 'r.damaged'}",
    ]
    assert (tmp_path / "r.damaged").read_bytes() == b'{"kind": "end", "i\n'
    refused = [json.loads(line)["message"] for line in (tmp_path / "r.rejected").read_text().splitlines()]
    assert (refused[0]["parameters"], refused[1]["points"][0][0]) == ({"x": 2}, "no such name?")
    client = destination.open().client
    run = client.get_run(uploader.state().run_ids["refused"])
    assert run.info.status == "FINISHED" and run.data.params == {"x": "1"}
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [1, 2]


def test_a_run_is_told_what_was_damaged_in_the_spool_of_an_earlier_one(
    tmp_path: Path, destination: Destination
) -> None:
    (tmp_path / "earlier.jsonl").write_bytes(b"no message\n")
    tracker = Tracker("now", tmp_path, destination, [tmp_path / "earlier.jsonl"])
    tracker.put(run_message("now"))
    delivery = tracker.flush(60)
    tracker.close()
    assert delivery.complete
    assert delivery.kept_aside == [f"1 damaged lines of the spool, kept in {tmp_path / 'earlier.damaged'}"]
    assert not list(tmp_path.glob("*.jsonl"))


def test_the_same_points_again_are_not_stored_again(destination: Destination) -> None:
    """What a lost answer, or a kill between delivery and `advance`, comes to: the database drops equal rows."""
    writer = destination.open()
    points = [
        ["loss", value, step, 1000 + step] for step, value in enumerate((0.1, float("nan"), float("inf"), 1e-300))
    ]
    writer.apply(run_message("equal"))
    writer.apply({"kind": "metrics", "id": "equal", "points": points[:3]})
    for part in (points[1:], points, points):
        destination.open().apply({"kind": "metrics", "id": "equal", "points": part})
    history = writer.client.get_metric_history(writer.run_ids["equal"], "loss")
    assert [point.step for point in history] == [0, 1, 2, 3]


def test_what_a_tracker_tells_after_its_run_was_found_dead_is_not_left_running(destination: Destination) -> None:
    writer = destination.open()
    writer.apply(run_message("dead"))
    writer.apply({"kind": "kill", "id": "dead", "end_time": 7000})
    writer.apply({**run_message("dead/train"), "parent_id": "dead"})
    writer.apply({**run_message("deadlier")})
    status = {name: writer.client.get_run(writer.run_ids[name]).info.status for name in ("dead/train", "deadlier")}
    assert status == {"dead/train": "KILLED", "deadlier": "RUNNING"}


def test_a_repair_of_a_run_that_was_killed_adds_only_the_points_it_lacks(destination: Destination) -> None:
    """Their times differ: those of the run are real, those of the repair made from the artifact."""
    writer = destination.open()
    run = {**run_message("half"), "tags": {KEY_TAG: "f" * 32}}
    writer.apply(run)
    writer.apply({"kind": "metrics", "id": "half", "points": [["loss", 1.0, 1, 5000], ["loss", 2.0, 2, 6000]]})
    writer.apply({"kind": "kill", "id": "half", "end_time": 7000})
    points = [["loss", float(step), step, 1000] for step in (1, 2, 3)]
    end = {"kind": "end", "id": "half", "status": "FINISHED", "end_time": 8000}
    repair = {"kind": "repair", "id": "half", "key": "f" * 32}
    for _ in range(2):
        messages = [run, {"kind": "metrics", "id": "half", "points": points}, end]
        destination.open().apply({**repair, "messages": messages})
    found = writer.client.get_run(writer.run_ids["half"])
    assert found.info.status == "FINISHED"
    history = writer.client.get_metric_history(found.info.run_id, "loss")
    assert sorted((m.step, m.timestamp) for m in history) == [(1, 5000), (2, 6000), (3, 1000)]


def test_a_server_that_does_not_answer_costs_only_delay(tmp_path: Path, destination: Destination) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections, says nothing: a caller waits two minutes
        away = Destination(uri=f"http://127.0.0.1:{mute.getsockname()[1]}", experiment="toy", artifact_location=None)
        tracker = Tracker("late", tmp_path, away)
        started = time.monotonic()
        tracker.put(run_message("late"))
        tracker.receive("metrics", "s", {"metrics": {"loss": 1.0}, "step": 1, "time": 1.0})
        assert time.monotonic() - started < 30
        delivery = tracker.flush(1)
    tracker.close()
    assert not delivery.complete and delivery.error
    later = Uploader(Spool(tmp_path / "late.jsonl"), Connection(destination, tmp_path / "writer.lock"))
    assert later.deliver(final=True) and "late" in later.state().run_ids


def _deliver(destination: Destination, folder: Path) -> None:
    spool = Spool(folder / f"{multiprocessing.current_process().pid}.jsonl")
    spool.append(run_message(spool.path.stem))
    uploader = Uploader(spool, Connection(destination, folder / "writer.lock"))
    assert uploader.deliver(wait_seconds=120), uploader.error


def _find(destination: Destination, folder: Path) -> None:
    with pytest.raises(UserError, match="is registered"):
        find_champion(destination, "nobody")


def _look(destination: Destination, folder: Path) -> None:
    destination.open()  # as `ui`, `doctor` and `lineage` do


def test_several_processes_that_meet_a_fresh_store_do_not_break_it(tmp_path: Path) -> None:
    fresh = Destination(uri=f"sqlite:///{tmp_path / 'new.db'}", experiment="e", artifact_location=None)
    context = multiprocessing.get_context("spawn")
    openers = (_deliver, _deliver, _find, _look)
    processes = [context.Process(target=opener, args=(fresh, tmp_path)) for opener in openers]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
    assert [process.exitcode for process in processes] == [0] * len(processes)
    writer = fresh.open()
    assert len(writer.client.search_runs([writer.experiment_id])) == 2


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


def test_a_repair_that_comes_before_the_points_does_not_double_them(tmp_path: Path, destination: Destination) -> None:
    """As when another run reuses a step whose maker's messages still wait: two processes, other times of day."""
    run = {**run_message("early"), "tags": {KEY_TAG: "e" * 32}}
    live = [["loss", float(step), step, 5000 + step] for step in (1, 2, 3)]
    told = [["loss", float(step), step, 1000] for step in (1, 2, 3)]
    first, second = (Connection(destination, tmp_path / "lock") for _ in range(2))
    with first.writing() as writer:
        writer.apply(run)
        writer.apply({"kind": "metrics", "id": "early", "points": live[:1]})
    (tmp_path / "lock").write_text(json.dumps({"host": "other", "pid": 1, "started": "1"}))  # the second is elsewhere
    with second.writing() as writer:
        messages = [run, {"kind": "metrics", "id": "early", "points": told}, end("early")]
        writer.apply({"kind": "repair", "id": "early", "key": "e" * 32, "messages": messages})
    (tmp_path / "lock").write_text(json.dumps({"host": "other", "pid": 1, "started": "1"}))
    with first.writing() as writer:
        writer.apply({"kind": "metrics", "id": "early", "points": live})
        history = writer.client.get_metric_history(writer.run_ids["early"], "loss")
    assert sorted((point.step, point.timestamp) for point in history) == [(1, 5001), (2, 1000), (3, 1000)]


def test_what_earlier_runs_left_goes_first_however_long_the_server_is_away(
    tmp_path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an alias that both set would end where the earlier one puts it."""
    monkeypatch.setattr("infra.tracking.tracker.FIRST_PAUSE_SECONDS", 0.05)
    order: list[str] = []
    real = Spool.advance

    def seen(spool: Spool, position: int, run_ids: dict[str, str]) -> None:
        order.append(spool.path.stem)
        real(spool, position, run_ids)

    monkeypatch.setattr(Spool, "advance", seen)
    earlier = Spool.written(tmp_path / "first.jsonl", [run_message("first")])
    away = [True]
    opening = Destination.open

    def shaky(target: Destination) -> object:
        if away:
            away.pop()
            raise OSError("away")
        return opening(target)

    monkeypatch.setattr(Destination, "open", shaky)
    tracker = Tracker("second", tmp_path, destination, [earlier.path])
    tracker.put(run_message("second"))
    delivery = tracker.flush(60)
    tracker.close()
    assert delivery.complete and not away and order == ["first", "second"]


def test_what_cannot_be_kept_aside_is_not_passed_over(
    tmp_path: Path, destination: Destination, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool.written(
        tmp_path / "full.jsonl", [run_message("full"), {**run_message("full"), "parameters": {"x": 2}}]
    )
    uploader = Uploader(spool, Connection(destination, tmp_path / "lock"))
    keep, full = Spool._keep, [True]

    def disk(self: Spool, what: str, line: bytes) -> None:
        if full:
            full.pop()
            raise OSError(28, "No space left on device")
        keep(self, what, line)

    monkeypatch.setattr(Spool, "_keep", disk)
    assert not uploader.deliver(final=True) and "No space left" in str(uploader.error)
    assert uploader.deliver(final=True)
    assert uploader.state().kept_aside == [f"1 messages that MLflow refused, kept in {tmp_path / 'full.rejected'}"]
