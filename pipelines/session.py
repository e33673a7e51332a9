"""One run's messages to MLflow and to the console, and its record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cluster.environment import apply, run_environment
from infra.errors import DamagedArtifactError, FromzeroError, StorageError
from infra.journal import acceptance, git, runs
from infra.journal.execution import Listener, Outcome
from infra.journal.plan import PlannedStep
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord, StepRecord
from infra.storage.store import Store
from infra.tracking import messages
from infra.tracking.actor import TrackerHandle
from infra.tracking.delivered import Delivered, aliases
from infra.tracking.lineage import Lineage
from infra.tracking.spool import Spool
from infra.tracking.tracker import Connection, Delivery, Destination, Uploader
from pipelines.signals import Interrupts

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
        store = prepared.store
        self._delivered = Delivered.load(store.root, prepared.destination, store.objects)

    def listener(self, interrupts: Interrupts) -> Listener:
        """For the execution, which it interrupts where an interrupt was lost."""

        def tick(running: Sequence[str]) -> None:
            interrupts.check()
            self._tick(running)

        return Listener(started=self._started, ended=self._ended, tick=tick)

    def begin(self) -> None:
        """Opens the pipeline's run."""
        config = self.prepared.config.model_dump(mode="json")
        now = self.record.started_at
        self.tracker.put(*messages.pipeline_started(self.record.id, self.prepared.pipeline, config, self.tags, now))

    def end(self, status: runs.RunStatus, outcome: Outcome) -> Delivery:
        """Sends lineage, closes the pipeline's run, waits for the delivery."""
        if outcome.manifests:
            store = self.prepared.store
            lineage = Lineage.of(store.with_ancestors(outcome.manifests.values()), store.uri)
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
                self.prepared.store.uri,
                time.time(),
                self.tags,
            )
        )
        self.console.started(planned)

    def _ended(self, planned: PlannedStep, record: StepRecord, manifest: Mapping[str, Any] | None) -> None:
        store = self.prepared.store
        if record.status == "ran" and manifest is not None:
            self._tell(manifest, lambda *place: messages.step_finished(self.record.id, manifest, *place))
        elif record.status == "reused" and manifest is not None:
            if not (store.objects and self._delivered.has([manifest])):  # to tell it takes its files
                self._tell(manifest, lambda folder, uri: [messages.repair(manifest, folder, store.uri, uri=uri)])
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

    def _tell(self, manifest: Manifest, told: Callable[[Path, str], Iterable[messages.Message]]) -> None:
        """Puts what `told` says of an artifact, with its folder on this machine and its URI."""
        store, step, key = self.prepared.store, manifest["step"], manifest["key"]
        try:
            folder = store.fetch(step, key) if store.objects else store.artifact_folder(step, key)
            self.tracker.put(*told(folder, store.artifact_uri(step, key)))
        except StorageError as error:  # the result is there; what lacks it fails by itself, and names it
            self.console.say(f"MLflow is not told of {step} ({error}); `fromzero sync` tells it later")

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
    delivered = Delivered.load(store.root, prepared.destination, store.objects)
    if runs.leftover_spools(store) or not delivered.has(manifests.values()):
        tell(deliver(store, prepared.destination, [], list(manifests.values())), console)
        delivered = Delivered.load(store.root, prepared.destination, store.objects)
    records = []
    for planned in prepared.plan:
        manifest = manifests[planned.step.name]
        record = StepRecord(
            name=planned.step.name,
            key=planned.key,
            status="reused",
            reasons=list(planned.reasons),
            run_id=delivered.run_ids.get(planned.key),
            artifact_uri=store.artifact_uri(planned.step.name, planned.key),
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
        root=store.uri,
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


def deliver(
    store: Store,
    target: Destination,
    past: Sequence[Manifest],
    current: Sequence[Manifest],
    *,
    moves_aliases: bool = True,
) -> Delivery:
    """Delivers in this process, without Ray: what runs that are over left in their spools, finished steps, acceptances.

    Args:
        store: the root.
        target: the MLflow store.
        past: manifests of steps whose models take no alias.
        current: manifests of steps whose models take theirs.
        moves_aliases: also from another version, on which somebody may have put them by hand.
    """
    apply(run_environment())
    leftovers = runs.leftover_spools(store)
    wanted = _wanted(store, target, (*past, *current))
    told: list[messages.Message] = []
    for manifest, alias in [*((one, False) for one in past), *((one, True) for one in current)]:
        folder = store.artifact_folder(manifest["step"], manifest["key"])
        if manifest["key"] in wanted:
            try:
                store.fetch(manifest["step"], manifest["key"])
            except DamagedArtifactError as error:
                logger.warning("MLflow is not told of %s: %s", manifest["step"], error)
                continue
        uri = store.artifact_uri(manifest["step"], manifest["key"])
        use: messages.AliasUse = ("move" if moves_aliases else "keep") if alias else "none"
        told.append(messages.repair(manifest, folder, store.uri, uri=uri, alias=use))
    told += acceptance.told(store)
    spool = Spool.written(store.root / "spool" / f"{runs.new_run_id()}.jsonl", told)
    whole = Delivery(complete=True, pending_bytes=0)
    connection = Connection(target, store.root / "spool" / "writer.lock")
    for waiting in (*leftovers, spool):
        uploader = Uploader(waiting, connection)
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
        delivered = Delivered.load(store.root, target, store.objects)
        delivered.add([*({**one, "records": []} for one in past), *current], whole.run_ids)
    return whole


def _wanted(store: Store, target: Destination, manifests: Sequence[Manifest]) -> set[str]:
    """Keys of the artifacts that must be here and sound before MLflow is told of them: those with a registered model,
    whose files it takes; on an object store also those that it does not know, whose small files it takes."""
    models = {m["key"] for m in manifests if any(record.get("registered_name") for record in m["records"])}
    if store.objects is None:
        return models
    try:
        writer = target.open()
        return models | {m["key"] for m in manifests if writer.find_step(m["key"]) is None}
    except Exception:  # telemetry boundary: MLflow raises whatever its network raises, and so will the delivery
        return models


def latest_and_past(store: Store) -> tuple[list[Manifest], list[Manifest]]:
    """The manifests of the steps on whose models an alias stood last, and all others, the oldest first."""
    manifests = list(store.manifests())
    by_key = {manifest["key"]: manifest for manifest in manifests}
    used = [step.key for record in runs.load_all(store) for step in record.steps if step.key in by_key]
    holders: dict[str, str] = {}
    for manifest in (*map(by_key.__getitem__, used), *manifests):  # the newest use, then the newest
        for alias in aliases(manifest):
            holders.setdefault(alias, manifest["key"])
    keys = set(holders.values())
    manifests.reverse()
    return [m for m in manifests if m["key"] in keys], [m for m in manifests if m["key"] not in keys]


def close(
    record: RunRecord, prepared: Prepared, outcome: Outcome, delivery: Delivery | None, status: runs.RunStatus
) -> RunRecord:
    """The record of a run at its end; remembers what MLflow has."""
    ids = delivery.run_ids if delivery else {}
    if delivery and delivery.complete and not delivery.kept_aside:
        delivered = Delivered.load(prepared.store.root, prepared.destination, prepared.store.objects)
        try:
            delivered.add(outcome.manifests.values(), ids)
        except (FromzeroError, OSError) as error:  # the next run asks MLflow what it has
            logger.warning("what was delivered is not on record: %s", error)
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
