"""A root and its MLflow store, filled by runs of toy steps as real runs fill them, in this process and without Ray."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from infra.journal import runs
from infra.journal.plan import make_plan
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord, StepRecord
from infra.journal.step import Artifact, Step, StepContext, StepOutput
from infra.journal.worker import Failure, Job, run_job
from infra.storage.store import Store
from infra.tracking import messages
from infra.tracking.client import StepTracker
from infra.tracking.config import TrackingConfig
from infra.tracking.delivered import Delivered
from infra.tracking.locations import destination
from infra.tracking.records import CheckpointRecord, ModelRecord
from infra.tracking.tracker import Destination, Tracker
from infra.tracking.writer import KEY_TAG, Writer
from tests.infra import toy_steps
from tests.infra.toy_steps import ToyConfig

CLUSTER = {"CPU": 2.0, "GPU": 0.0}


def train(config: ToyConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """A toy step that makes a model too; its file is a hard link to one of the work folder."""
    output = toy_steps.add(config, inputs, context)
    weights = context.work / "weights"
    weights.write_bytes(bytes(100_000))
    (context.output / "model").mkdir()
    os.link(weights, context.output / "model" / "weights")
    record = ModelRecord(path="model", name=context.step, task="fill-mask", metrics={"loss": 1.0})
    return replace(output, records=(*output.records, record))


def save(config: ToyConfig, inputs: Mapping[str, Artifact], context: StepContext) -> StepOutput:
    """A toy step with two checkpoints, of which one is to stay."""
    output = toy_steps.add(config, inputs, context)
    for name in ("step_1", "step_2"):
        (context.work / "checkpoints" / name).mkdir(parents=True)
        (context.work / "checkpoints" / name / "manifest.json").write_text("{}")
    (context.work / "attempts.log").write_text("1 0")
    record = CheckpointRecord(path="checkpoints/step_2", name="best", metrics={"validation_loss": 1.0})
    return replace(output, records=(*output.records, record))


def checkpointed(name: str) -> Step:
    """A step with a checkpoint that stays."""
    return replace(toy_steps.step(name), function="tests.infra.toy_root:save")


def training(name: str, config: ToyConfig | None = None, **inputs: Step) -> Step:
    """A step with a model."""
    return replace(toy_steps.step(name, config, **inputs), function="tests.infra.toy_root:train")


class _Sink:
    def __init__(self, tracker: Tracker) -> None:
        self.send = tracker.receive


class ToyRoot:
    """`uri`: its MLflow store; without it a SQLite file of its own, a copy of `database` if one is given."""

    def __init__(self, folder: Path, uri: str | None = None, database: Path | None = None) -> None:
        self.store = Store.open(str(folder))
        self.destination: Destination = destination(TrackingConfig(uri=uri), self.store.root)
        if database and uri is None:
            shutil.copy(database, self.store.root / "mlflow.db")

    def run(self, *targets: Step, run_id: str | None = None) -> dict[str, str]:
        """One whole pipeline run, delivered to MLflow; returns the key of each step."""
        run_id = run_id or f"20260101-{len(list(runs.load_all(self.store))):06}-aaaaaa"
        plan = make_plan(targets, self.store, CLUSTER)
        record = self._record(run_id, {planned.step.name: planned.key for planned in plan})
        runs.save(self.store, record)
        tracker = Tracker(run_id, self.store.root / "spool", self.destination)
        for message in messages.pipeline_started(run_id, "toy", {"seed": 0}, {}, time.time()):
            tracker.put(message)
        artifacts: dict[str, Artifact] = {}
        manifests: list[Mapping[str, Any]] = []
        steps: list[StepRecord] = []
        for planned in plan:
            step, folder = planned.step, self.store.artifact_folder(planned.step.name, planned.key)
            inputs = {role: artifacts[parent.name] for role, parent in step.inputs.items()}
            if planned.manifest is not None:
                made: Any = planned.manifest
                tracker.put(messages.repair(made, folder, self.store.root))
            else:
                used = {role: {"step": one.step, "key": one.key} for role, one in inputs.items()}
                config = step.config.model_dump(mode="json")
                now = time.time()
                for message in messages.step_started(
                    run_id, step.name, planned.key, config, used, self.store.root, now, {}
                ):
                    tracker.put(message)
                made = run_job(
                    Job(
                        step=step,
                        key=planned.key,
                        identity=planned.identity,
                        definitions=planned.definitions,
                        inputs=inputs,
                        root=self.store.root,
                        tracker=StepTracker(step=step.name, sink=_Sink(tracker)),
                        environment={"made_by_run": run_id, "tags": {}},
                    )
                )
                if isinstance(made, Failure):
                    tracker.put(messages.run_ended(f"{run_id}/{step.name}", "FAILED", time.time()))
                    steps.append(StepRecord(name=step.name, key=planned.key, status="failed", reasons=[made.message]))
                    break
                for message in messages.step_finished(run_id, made, folder):
                    tracker.put(message)
            manifests.append(made)
            status: Any = "reused" if planned.manifest else "ran"
            steps.append(StepRecord(name=step.name, key=planned.key, status=status))
            artifacts[step.name] = Artifact(step=step.name, key=planned.key, path=folder, metrics=made["metrics"])
        tracker.put(messages.run_ended(run_id, "FINISHED", time.time()))
        delivery = tracker.flush(120)
        tracker.close()
        if delivery.complete:
            Delivered.load(self.store.root, self.destination).add(manifests, delivery.run_ids)
        runs.save(self.store, record.model_copy(update={"status": "FINISHED", "steps": steps}))
        return dict(record.planned)

    def _record(self, run_id: str, planned: dict[str, str]) -> RunRecord:
        return RunRecord(
            id=run_id,
            pipeline="toy",
            status="RUNNING",
            started_at=time.time(),
            process=ProcessIdentity.current().to_json(),
            root=str(self.store.root),
            tracking_uri=self.destination.uri,
            planned=planned,
        )

    def killed(self, run_id: str, planned: dict[str, str]) -> None:
        """The record of a run that was killed before it could say what it did."""
        runs.save(self.store, self._record(run_id, planned).model_copy(update={"status": "KILLED"}))

    @property
    def writer(self) -> Writer:
        """To look at MLflow, and to change it."""
        return self.destination.open()

    def register(self, name: str, key: str, alias: str | None = None) -> None:
        """A version of a registered model made by the step with `key`."""
        client = self.writer.client
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = client.create_model_version(name, "elsewhere", tags={KEY_TAG: key})
        if alias:
            client.set_registered_model_alias(name, alias, version.version)

    def artifacts(self) -> set[str]:
        """`step/key` of all that are there."""
        return {f"{path.parent.name}/{path.name}" for path in (self.store.root / "artifacts").glob("*/*")}

    def own_ids(self) -> set[str]:
        """Our ids of the runs that MLflow shows."""
        writer = self.writer
        found = writer.client.search_runs([writer.experiment_id], max_results=1000)
        return {run.data.tags["fromzero.id"] for run in found}

    def content(self) -> dict[str, Any]:
        """Everything that is there: files with their sizes, rows of MLflow's database by table."""
        files = {
            str(path.relative_to(self.store.root)): path.stat().st_size
            for path in sorted(self.store.root.rglob("*"))
            if path.is_file() and path.name != "mlflow.db" and path.parent.name not in ("locks", "spool")
        }
        with contextlib.closing(sqlite3.connect(self.store.root / "mlflow.db")) as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables = {name: sorted(map(repr, database.execute(f'SELECT * FROM "{name}"'))) for name in names}
        return {"files": files, "tables": tables}
