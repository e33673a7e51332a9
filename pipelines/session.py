"""One run's messages to MLflow and to the console, and its record."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infra.cluster.environment import apply, run_environment
from infra.journal import git, runs
from infra.journal.execution import Listener, Outcome
from infra.journal.plan import PlannedStep
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord, StepRecord
from infra.storage.store import Store
from infra.tracking import messages
from infra.tracking.actor import TrackerHandle
from infra.tracking.delivered import Delivered
from infra.tracking.lineage import Lineage
from infra.tracking.spool import Spool
from infra.tracking.tracker import Delivery, Destination, Uploader

if TYPE_CHECKING:
    from pipelines.runner import Console, Prepared

Manifest = Mapping[str, Any]
logger = logging.getLogger(__name__)


class Session:
    """One run's messages to MLflow and to the console."""

    def __init__(self, prepared: Prepared, record: RunRecord, tracker: TrackerHandle, console: Console) -> None:
        self.prepared = prepared
        self.record = record
        self.tracker = tracker
        self.console = console
        self.tags = git.commit()
        self._renewed = time.monotonic()
        self.facts: Mapping[str, Any] = {"made_by_run": record.id, "tags": self.tags}

    def listener(self) -> Listener:
        """For the execution."""
        return Listener(started=self._started, ended=self._ended, tick=self._tick)

    def begin(self) -> None:
        """Opens the pipeline's run."""
        config = self.prepared.config.model_dump(mode="json")
        now = self.record.started_at
        self.tracker.put(*messages.pipeline_started(self.record.id, self.prepared.pipeline, config, self.tags, now))

    def end(self, status: runs.RunStatus, outcome: Outcome) -> Delivery:
        """Sends lineage, closes the pipeline's run, waits for the delivery."""
        if outcome.manifests:
            store = self.prepared.store
            lineage = Lineage.of(store.with_ancestors(outcome.manifests.values()), store.root)
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
        if status != "FINISHED":  # steps that were interrupted
            self.tracker.put({"kind": "kill", "id": self.record.id, "end_time": int(time.time() * 1000)})
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
        config = planned.step.config.model_dump(mode="json")
        self.tracker.put(
            *messages.step_started(
                self.record.id,
                planned.step.name,
                planned.key,
                config,
                inputs,
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
            raw = {
                source: [{"path": file.path, "sha256": file.digest} for file in files]
                for source, files in planned.step.raw.items()
            }
            self.tracker.put(
                *messages.raw_inputs(own_id, raw),
                {"kind": "tags", "id": own_id, "tags": {"fromzero.error": "\n".join(record.reasons)}},
                messages.run_ended(own_id, "FAILED", time.time()),
            )
        self.console.ended(planned, record)

    def _tick(self, running: Sequence[str]) -> None:
        self.console.tick(running, self.tracker.progress())
        if time.monotonic() - self._renewed > runs.RENEW_SECONDS:
            self._renewed = time.monotonic()
            try:
                runs.save(self.prepared.store, self.record.model_copy(update={"renewed_at": time.time()}))
            except OSError as error:  # the next one may do better, and the run is worth more than its lease
                logger.warning("the lease of run %s is not renewed: %s", self.record.id, error)


def reused(prepared: Prepared, console: Console) -> RunRecord:
    """The record of a run that had nothing to do: that of the run that made the last step.

    MLflow is asked, and told, only where something may be missing there: a new server, a lost database, a champion that
    is another model, messages of a run that was killed.
    """
    store = prepared.store
    manifests = {planned.step.name: planned.manifest or {} for planned in prepared.plan}
    delivered = Delivered.load(store.root, prepared.destination)
    if runs.leftover_spools(store) or not delivered.has(manifests.values()):
        tell(deliver(store, prepared.destination, [], list(manifests.values())), console)
        delivered = Delivered.load(store.root, prepared.destination)
    records = []
    for planned in prepared.plan:
        manifest = manifests[planned.step.name]
        record = StepRecord(
            name=planned.step.name,
            key=planned.key,
            status="reused",
            reasons=list(planned.reasons),
            run_id=delivered.run_ids.get(planned.key),
            artifact_uri=store.artifact_folder(planned.step.name, planned.key).as_uri(),
            metrics=dict(manifest["metrics"]),
            measured=dict(manifest["measured"]),
        )
        records.append(record)
        console.ended(planned, record)
    maker = manifests[prepared.plan[-1].step.name].get("made_by_run")
    earlier = next((record for record in runs.load_all(store) if record.id == maker), None)
    now = time.time()
    return RunRecord(
        id=str(maker),
        pipeline=prepared.pipeline,
        status="FINISHED",
        started_at=now,
        finished_at=now,
        process=ProcessIdentity.current().to_json(),
        root=str(store.root),
        tracking_uri=prepared.tracking_uri,
        run_id=earlier.run_id if earlier and earlier.tracking_uri == prepared.tracking_uri else None,
        steps=records,
    )


def tell(delivery: Delivery, console: Console) -> None:
    """What the user should know of a delivery."""
    for line in delivery.kept_aside:
        console.say(line)
    if not delivery.complete:
        console.say(f"MLflow did not take everything ({delivery.error}); `fromzero sync` delivers the rest later")


def deliver(store: Store, target: Destination, past: Sequence[Manifest], current: Sequence[Manifest]) -> Delivery:
    """Delivers in this process, without Ray: what runs that are over left in their spools, and finished steps.

    Args:
        store: the root.
        target: the MLflow store.
        past: manifests of steps whose models take no alias.
        current: manifests of steps whose models take theirs.
    """
    apply(run_environment())
    spool = Spool(store.root / "spool" / f"{runs.new_run_id()}.jsonl")
    leftovers = runs.leftover_spools(store)
    for manifest, alias in [*((one, False) for one in past), *((one, True) for one in current)]:
        folder = store.artifact_folder(manifest["step"], manifest["key"])
        spool.append(messages.repair(manifest, folder, store.root, alias=alias))
    whole = Delivery(complete=True, pending_bytes=0)
    for waiting in (*leftovers, spool):
        uploader = Uploader(waiting, target, store.root / "spool" / "writer.lock")
        done = uploader.deliver_whole()
        whole.kept_aside += waiting.kept_aside
        whole.run_ids |= uploader.state().run_ids
        if not done:
            whole.complete, whole.pending_bytes = False, waiting.pending_bytes
            whole.error = f"{waiting.path.stem}: {uploader.error}; {waiting.pending_bytes} bytes wait"
            spool.remove()  # what it says can be said again from the artifacts
            return whole
        waiting.remove()
    if not whole.kept_aside:
        delivered = Delivered.load(store.root, target)
        delivered.add([*({**one, "records": []} for one in past), *current], whole.run_ids)
    return whole


def latest_and_past(store: Store) -> tuple[list[Manifest], list[Manifest]]:
    """The manifests of the newest run, and all others, the oldest first."""
    newest = next((record for record in runs.load_all(store) if record.steps), None)
    keys = {step.key for step in newest.steps} if newest else set()
    folders = sorted((store.root / "artifacts").iterdir())
    manifests = [manifest for folder in folders for manifest in store.manifests(folder.name)]
    manifests.sort(key=lambda manifest: float(manifest["finished_at"]))
    return [m for m in manifests if m["key"] in keys], [m for m in manifests if m["key"] not in keys]


def close(
    record: RunRecord, prepared: Prepared, outcome: Outcome, delivery: Delivery | None, status: runs.RunStatus
) -> RunRecord:
    """The record of a run at its end; remembers what MLflow has."""
    ids = delivery.run_ids if delivery else {}
    if delivery and delivery.complete and not delivery.kept_aside:
        delivered = Delivered.load(prepared.store.root, prepared.destination)
        delivered.add(outcome.manifests.values(), ids)
    makers = {name: manifest["made_by_run"] for name, manifest in outcome.manifests.items()}
    steps = [
        step.model_copy(update={"run_id": ids.get(f"{makers.get(step.name, record.id)}/{step.name}")})
        for step in outcome.records
    ]
    return record.model_copy(
        update={
            "status": status,
            "finished_at": time.time(),
            "run_id": ids.get(record.id),
            "steps": steps,
            "errors": [*record.errors, *(f"{failure.step}: {failure.message}" for failure in outcome.failures)],
        }
    )
