"""Runs a pipeline: plan, then Ray, the tracker and the execution, then the record of the run.

A run that can reuse everything starts neither Ray nor MLflow.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infra.cluster.environment import apply, run_environment
from infra.cluster.session import available_cpus, ray_session
from infra.errors import ResourceError
from infra.journal import git, runs
from infra.journal.execution import Execution, Listener, Outcome
from infra.journal.lock import claimed
from infra.journal.plan import PlannedStep, make_plan
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord, StepRecord
from infra.journal.worker import Failure
from infra.storage.store import Store
from infra.tracking import messages
from infra.tracking.actor import TrackerHandle, start_tracker
from infra.tracking.lineage import Lineage
from infra.tracking.locations import destination
from infra.tracking.tracker import Delivery
from pipelines.config import PipelineConfig
from pipelines.llm import build
from pipelines.signals import terminable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A validated pipeline and its plan; nothing has run."""

    pipeline: str
    config: PipelineConfig
    store: Store
    plan: list[PlannedStep]

    @property
    def is_all_reused(self) -> bool:
        """Whether there is nothing to run."""
        return all(planned.status == "reused" for planned in self.plan)

    @property
    def unmade(self) -> set[tuple[str, str]]:
        """(step, key) of all that is to be made."""
        return {(planned.step.name, planned.key) for planned in self.plan if planned.status == "run"}

    @property
    def tracking_uri(self) -> str:
        """Where the run is tracked."""
        return destination(self.config.tracking, self.store.root).uri


class Console(Protocol):
    """What shows a run to a person; see `pipelines.cli.console`."""

    def started(self, planned: PlannedStep) -> None:
        """A step starts."""

    def ended(self, planned: PlannedStep, record: StepRecord) -> None:
        """A step is settled."""

    def tick(self, running: Sequence[str], progress: Mapping[str, Mapping[str, Any]]) -> None:
        """About twice a second."""

    def say(self, line: str) -> None:
        """One line for the reader."""


def prepare(pipeline: str, config: PipelineConfig) -> Prepared:
    """Resolves the raw files and plans.

    Raises:
        UserError, StorageError: wrong paths, an unusable root.
    """
    store = Store.open(config.storage.root)
    cluster = {"CPU": float("inf"), "GPU": float("inf")}
    if config.cluster.address is None:
        cluster = {"CPU": available_cpus(config.cluster), "GPU": float("inf")}
    return Prepared(pipeline=pipeline, config=config, store=store, plan=make_plan([build(config)], store, cluster))


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A run that came to its end."""

    record: RunRecord
    failures: tuple[Failure, ...] = ()


def execute(prepared: Prepared, console: Console) -> Result:
    """Runs the plan and returns the record of the run; failures are in it, not raised.

    Raises:
        InfrastructureError: Ray does not start.
        ResourceError: a step wants what the cluster can never grant.
        LockedError: another run makes a step that this one needs; nothing was started.
    """
    blocked = [planned for planned in prepared.plan if planned.status == "blocked"]
    if blocked:
        raise ResourceError("; ".join(f"{p.step.name}: {', '.join(p.reasons)}" for p in blocked))
    if prepared.is_all_reused:
        return Result(record=_reused(prepared, console))
    with claimed(prepared.store.root / "locks", prepared.unmade):
        now = prepare(prepared.pipeline, prepared.config)  # another run may have ended before the claim was had
        if now.is_all_reused:
            return Result(record=_reused(now, console))
        if now.unmade <= prepared.unmade:
            return _execute(now, console)
    return execute(now, console)  # raw files changed in between


def _execute(prepared: Prepared, console: Console) -> Result:
    store, run = prepared.store, runs.new_run_id()
    record = RunRecord(
        id=run,
        pipeline=prepared.pipeline,
        status="RUNNING",
        started_at=time.time(),
        process=ProcessIdentity.current().to_json(),
        root=str(store.root),
        tracking_uri=prepared.tracking_uri,
    )
    dead = runs.close_dead(store)
    runs.save(store, record)
    apply(run_environment())
    outcome, delivery = Outcome(), None
    status: runs.RunStatus = "KILLED"
    try:
        with terminable(), ray_session(prepared.config.cluster) as cluster, terminable():  # Ray sets its own handler
            target = destination(prepared.config.tracking, store.root)
            tracker = start_tracker(run, store.root / "spool", target)
            session = _Session(prepared, record, tracker, console)
            session.begin(dead)
            execution = Execution(prepared.plan, store, tracker.sink, cluster, session.facts, session.listener())
            outcome = execution.outcome
            try:
                execution.run()
                status = "FAILED" if outcome.failures else "FINISHED"
            finally:
                delivery = session.end(status, outcome)
    finally:
        record = _close(record, prepared, outcome, delivery, status)
        runs.save(store, record)
    if delivery and not delivery.complete:
        console.say(f"MLflow did not take everything ({delivery.error}); `fromzero sync` delivers the rest later")
    if delivery and delivery.rejected:
        console.say(f"MLflow refused {delivery.rejected} messages; they are in {store.root}/spool/{run}.rejected")
    return Result(record=record, failures=tuple(outcome.failures))


class _Session:
    """One run's messages to MLflow and to the console."""

    def __init__(self, prepared: Prepared, record: RunRecord, tracker: TrackerHandle, console: Console) -> None:
        self.prepared = prepared
        self.record = record
        self.tracker = tracker
        self.console = console
        self.tags = git.commit()
        self.facts: Mapping[str, Any] = {"made_by_run": record.id, "tags": self.tags}

    def listener(self) -> Listener:
        """For the execution."""
        return Listener(started=self._started, ended=self._ended, tick=self._tick)

    def begin(self, dead: Sequence[RunRecord]) -> None:
        """Opens the pipeline's run, closes those of the dead."""
        config = self.prepared.config.model_dump(mode="json")
        now = self.record.started_at
        self.tracker.put(*messages.pipeline_started(self.record.id, self.prepared.pipeline, config, self.tags, now))
        for other in dead:
            steps = [planned.step.name for planned in self.prepared.plan]
            for own_id in (other.id, *(f"{other.id}/{name}" for name in steps)):
                self.tracker.put({"kind": "kill", "id": own_id, "end_time": int((other.finished_at or now) * 1000)})

    def end(self, status: runs.RunStatus, outcome: Outcome) -> Delivery:
        """Sends lineage, closes the pipeline's run, waits for the delivery."""
        if outcome.manifests:
            lineage = Lineage.of(list(outcome.manifests.values()), self.prepared.store.root)
            self.tracker.put(
                {"kind": "lineage", "id": self.record.id, "about": self.record.id, "lineage": lineage.to_dict()}
            )
        numbers = {
            f"{name}.{key}": value
            for name, manifest in outcome.manifests.items()
            for key, value in manifest["metrics"].items()
            if isinstance(value, int | float)
        }
        now = int(time.time() * 1000)
        self.tracker.put(
            {"kind": "metrics", "id": self.record.id, "points": [[k, v, 0, now] for k, v in numbers.items()]}
        )
        self.tracker.put(*messages.pipeline_note(self.record.id, outcome.manifests.values()))
        self.tracker.put(messages.run_ended(self.record.id, status, time.time()))
        timeout = self.prepared.config.tracking.flush_timeout_seconds
        self.console.say("delivering to MLflow")
        return self.tracker.finish(timeout)

    def _started(self, planned: PlannedStep) -> None:
        inputs = {
            name: {"step": parent.name, "key": planned.identity["inputs"][name]}
            for name, parent in planned.step.inputs.items()
        }
        raw = {
            source: [{"path": file.path, "sha256": file.digest} for file in files]
            for source, files in planned.step.raw.items()
        }
        config = planned.step.config.model_dump(mode="json")
        self.tracker.put(
            *messages.step_started(
                self.record.id,
                planned.step.name,
                planned.key,
                config,
                inputs,
                raw,
                self.prepared.store.root,
                time.time(),
                self.tags,
            )
        )
        self.console.started(planned)

    def _ended(self, planned: PlannedStep, record: StepRecord, manifest: Mapping[str, Any] | None) -> None:
        folder = self.prepared.store.artifact_folder(planned.step.name, planned.key)
        if record.status == "ran" and manifest is not None:
            self.tracker.put(*messages.step_finished(self.record.id, manifest, folder))
        elif record.status == "reused" and manifest is not None:
            self.tracker.put(messages.repair(manifest, folder, self.prepared.store.root))
        elif record.status == "failed":
            own_id = f"{self.record.id}/{planned.step.name}"
            self.tracker.put(
                {"kind": "tags", "id": own_id, "tags": {"fromzero.error": "\n".join(record.reasons)}},
                messages.run_ended(own_id, "FAILED", time.time()),
            )
        self.console.ended(planned, record)

    def _tick(self, running: Sequence[str]) -> None:
        self.console.tick(running, self.tracker.progress())


def _reused(prepared: Prepared, console: Console) -> RunRecord:
    """The record of a run that had nothing to do: that of the run that made the last step."""
    records = []
    for planned in prepared.plan:
        manifest = planned.manifest or {}
        record = StepRecord(
            name=planned.step.name,
            key=planned.key,
            status="reused",
            artifact_uri=prepared.store.artifact_folder(planned.step.name, planned.key).as_uri(),
            metrics=dict(manifest["metrics"]),
            measured=dict(manifest["measured"]),
        )
        records.append(_with_run_id(record, prepared.store, manifest))
        console.ended(planned, records[-1])
    maker = (prepared.plan[-1].manifest or {}).get("made_by_run")
    earlier = next((record for record in runs.load_all(prepared.store) if record.id == maker), None)
    now = time.time()
    return RunRecord(
        id=str(maker),
        pipeline=prepared.pipeline,
        status="FINISHED",
        started_at=now,
        finished_at=now,
        process=ProcessIdentity.current().to_json(),
        root=str(prepared.store.root),
        tracking_uri=prepared.tracking_uri,
        run_id=earlier.run_id if earlier else None,
        steps=records,
    )


def _with_run_id(record: StepRecord, store: Store, manifest: Mapping[str, Any]) -> StepRecord:
    maker = next((r for r in runs.load_all(store) if r.id == manifest.get("made_by_run")), None)
    step = next((s for s in maker.steps if s.name == record.name), None) if maker else None
    return record.model_copy(update={"run_id": step.run_id if step else None})


def _close(
    record: RunRecord, prepared: Prepared, outcome: Outcome, delivery: Delivery | None, status: runs.RunStatus
) -> RunRecord:
    ids = delivery.run_ids if delivery else {}
    steps = [
        step.model_copy(update={"run_id": ids[own_id]})
        if (own_id := f"{record.id}/{step.name}") in ids
        else _with_run_id(step, prepared.store, outcome.manifests.get(step.name, {}))
        for step in outcome.records
    ]
    return record.model_copy(
        update={
            "status": status,
            "finished_at": time.time(),
            "run_id": ids.get(record.id),
            "steps": steps,
            "errors": [f"{failure.step}: {failure.message}" for failure in outcome.failures],
        }
    )
