"""What a run, and a sync, tell MLflow of results of the past; and how a run that breaks off is closed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.journal import runs
from infra.journal.execution import Execution
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord, StepRecord
from infra.storage.store import Store
from infra.tracking.config import TrackingConfig
from infra.tracking.locations import destination
from pipelines.compose import load_config
from pipelines.runner import execute, prepare
from pipelines.session import deliver, latest_and_past

CHAMPION = {"type": "model", "registered_name": "m", "alias": "champion", "path": "model", "name": "m", "task": "t"}


class Silent:
    """A console that says nothing."""

    def started(self, *arguments: Any) -> None: ...
    def ended(self, *arguments: Any) -> None: ...
    def tick(self, *arguments: Any) -> None: ...
    def say(self, line: str) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path / "root"))


def made(store: Store, step: str, key: str, finished_at: float, records: list[Any]) -> None:
    content: dict[str, Any] = {name: {} for name in ("identity", "inputs", "raw", "metrics", "measured")}
    content |= {"step": step, "key": key, "made_by_run": "r", "finished_at": finished_at, "records": records}
    folder = store.begin(step, key)
    (folder / "weights").write_text("weights")
    store.commit(folder, step, key, content)


def ran(store: Store, run: str, *steps: tuple[str, str]) -> None:
    runs.save(
        store,
        RunRecord(
            id=run,
            pipeline="toy",
            status="FINISHED",
            started_at=1.0,
            process=ProcessIdentity.current().to_json(),
            root=store.uri,
            tracking_uri="sqlite:///x",
            steps=[StepRecord(name=name, key=key, status="reused") for name, key in steps],
        ),
    )


def test_an_alias_stands_on_the_model_that_was_used_last_whatever_ran_since(store: Store) -> None:
    """Not on none, because the newest run made no model; nor on the newest model, if a later run went back."""
    old, new, corpus = "a" * 32, "b" * 32, "c" * 32
    made(store, "finetune", old, 1.0, [CHAMPION])
    made(store, "finetune", new, 2.0, [CHAMPION])
    made(store, "corpus", corpus, 3.0, [])
    assert [one["key"] for one in latest_and_past(store)[0]] == [new]  # no record is left: the newest
    ran(store, "20260101-000001-aaaaaa", ("finetune", new))
    ran(store, "20260101-000002-aaaaaa", ("finetune", old))
    ran(store, "20260101-000003-aaaaaa", ("corpus", corpus))
    current, past = latest_and_past(store)
    assert ([one["key"] for one in current], [one["key"] for one in past]) == ([old], [new, corpus])


def test_a_plan_that_is_made_again_knows_what_the_command_line_said(store: Store) -> None:
    arguments = [f"storage.root={store.root}", "task.sample_fraction=0.5"]
    prepared = prepare("smoke", load_config("smoke", arguments), arguments, until="task")
    (planned,) = prepared.plan
    identity = {**planned.identity, "config": json.loads(json.dumps(planned.identity["config"]).replace("0.5", "0.25"))}
    content: dict[str, Any] = {name: {} for name in ("inputs", "metrics", "measured")}
    content |= {"step": "task", "key": "d" * 32, "made_by_run": "r", "finished_at": 1.0, "records": [], "raw": {}}
    store.commit(store.begin("task", "d" * 32), "task", "d" * 32, {**content, "identity": identity})
    (again,) = prepared.again().plan
    assert again.reasons[0] == "task.sample_fraction changed 0.25 -> 0.5 (command line)"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("broken"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_breaks_off_is_closed_in_its_record_and_in_mlflow(
    store: Store,
    ray_cluster: Mapping[str, float],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    status: str,
) -> None:
    def broken(execution: Execution) -> Any:
        raise error

    monkeypatch.setattr(Execution, "run", broken)
    arguments = [f"storage.root={store.root}"]
    prepared = prepare("smoke", load_config("smoke", arguments), arguments, until="task")
    with pytest.raises(type(error)):
        execute(prepared, Silent())
    (record,) = runs.load_all(store)
    assert record.status == status
    assert record.errors == (["RuntimeError: broken"] if status == "FAILED" else [])
    left = [json.loads(line) for path in (store.root / "spool").glob("*.jsonl") for line in path.open()]
    ends = [message["kind"] for message in left if message["kind"] in ("kill", "end")]
    assert ends or record.run_id, "MLflow would show it as running for ever"


def test_a_damaged_model_is_neither_told_nor_registered(
    store: Store, empty_mlflow: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copy(empty_mlflow, store.root / "mlflow.db")
    target = destination(TrackingConfig(), store.root)
    made(store, "finetune", "a" * 32, 1.0, [CHAMPION])
    (store.artifact_folder("finetune", "a" * 32) / "weights").write_text("other")
    delivery = deliver(store, target, [], list(store.manifests()))
    assert delivery.complete and not delivery.run_ids
    assert "weights is missing or has another size" in caplog.text
    assert not target.open().client.search_registered_models()
