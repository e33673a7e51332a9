"""Runs a plan: each step as one Ray task, independent steps at the same time while their resources are free.

The only place that schedules Ray tasks. A failed step is retried by its own policy (infrastructure errors only), then
fails the run; steps that do not need it still run, and those that do are listed as blocked.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.errors import Fault, FromzeroError
from infra.journal.plan import PlannedStep, artifact_of
from infra.journal.runs import StepRecord
from infra.journal.step import STOP_NAME, Artifact
from infra.journal.worker import Failure, Job, classify, run_job
from infra.storage.store import Store
from infra.tracking.client import Sink, StepTracker

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Listener:
    """What is told while a run goes on; each call must be quick."""

    started: Callable[[PlannedStep], None] = lambda planned: None
    ended: Callable[[PlannedStep, StepRecord, Mapping[str, Any] | None], None] = lambda planned, record, manifest: None
    tick: Callable[[Sequence[str]], None] = lambda running: None
    """About twice a second, with the names of the steps that run."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of a plan."""

    records: list[StepRecord] = field(default_factory=list)
    manifests: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """By step name, of all that are finished."""
    failures: list[Failure] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    planned: PlannedStep
    started: float
    attempts: int = 1


class Execution:
    """One pass over a plan."""

    def __init__(
        self,
        plan: Sequence[PlannedStep],
        store: Store,
        sink: Sink,
        cluster: Mapping[str, float],
        environment: Mapping[str, Any],
        listener: Listener,
    ) -> None:
        self.plan = plan
        self.store = store
        self.sink = sink
        self.cluster = {"CPU": cluster.get("CPU", 0.0), "GPU": cluster.get("GPU", 0.0)}
        self.free = dict(self.cluster)
        self.environment = environment
        self.listener = listener
        self.outcome = Outcome()
        self._artifacts: dict[str, Artifact] = {}
        self._records: dict[str, StepRecord] = {}
        self._running: dict[Any, _Running] = {}

    def run(self) -> Outcome:
        """Runs until nothing more can be done."""
        import ray

        waiting = list(self.plan)
        try:
            while waiting or self._running:
                waiting = self._start_what_can(waiting)
                if waiting and not self._running:  # cannot be: a plan is checked against the cluster before it starts
                    raise FromzeroError(f"nothing runs, and {', '.join(p.step.name for p in waiting)} cannot start")
                if self._running:
                    done, _ = ray.wait(list(self._running), timeout=0.5)
                    for reference in done:
                        self._finish(reference)
                    self.listener.tick([running.planned.step.name for running in self._running.values()])
        except KeyboardInterrupt:
            self._end_in_order()
            raise
        finally:
            self._cancel(list(self._running))  # an interrupted run leaves no task behind
        self.outcome.records = [self._records[planned.step.name] for planned in self.plan]
        return self.outcome

    def _end_in_order(self) -> None:
        """Asks the steps that can to save what they have, and gives them the time; another interrupt ends that."""
        import ray

        asked = {ref: one.planned for ref, one in self._running.items() if one.planned.step.stop_seconds}
        if not asked:
            return
        self._cancel([reference for reference in self._running if reference not in asked])
        seconds = max(planned.step.stop_seconds for planned in asked.values())
        names = ", ".join(planned.step.name for planned in asked.values())
        logger.warning("stopping: %s may save for up to %g s; interrupt again to end at once", names, seconds)
        for planned in asked.values():
            self.store.write(f"work/{planned.step.name}/{planned.key}/{STOP_NAME}", {"at": time.time()})
        ended, _ = ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
        for reference in ended:
            del self._running[reference]

    def _cancel(self, references: Sequence[Any]) -> None:
        """Ends tasks, each once: to cancel one that has just ended aborts the whole process (Ray 2.60)."""
        import ray

        for reference in references:
            del self._running[reference]
            with contextlib.suppress(Exception):  # where Ray itself is gone, so is the task
                ray.cancel(reference, force=True)

    def _start_what_can(self, waiting: list[PlannedStep]) -> list[PlannedStep]:
        """Settles reused and blocked steps, starts what fits; returns what still waits."""
        left = []
        for planned in waiting:
            states = {p.name: self._records.get(p.name) for p in planned.step.inputs.values()}
            failed = [name for name, record in states.items() if record and record.status in ("failed", "blocked")]
            if planned.manifest is not None:
                self._settle(planned, "reused", planned.manifest)
            elif planned.status == "blocked" or failed:
                reasons = (
                    planned.reasons if planned.status == "blocked" else [f"needs {n}, which failed" for n in failed]
                )
                self._record(
                    planned,
                    StepRecord(name=planned.step.name, key=planned.key, status="blocked", reasons=list(reasons)),
                    None,
                )
            elif all(record is not None for record in states.values()) and self._fits(planned):
                self._start(planned)
            else:
                left.append(planned)
        return left

    def _fits(self, planned: PlannedStep) -> bool:
        wish = planned.step.resources.held(self.cluster)
        return all(wish[name] <= self.free[name] for name in wish)

    def _hold(self, planned: PlannedStep, sign: int) -> None:
        for name, number in planned.step.resources.held(self.cluster).items():
            self.free[name] -= sign * number

    def _start(self, planned: PlannedStep, attempts: int = 1) -> None:
        import ray

        if attempts == 1:
            self._hold(planned, 1)
            self.listener.started(planned)
        job = Job(
            step=planned.step,
            key=planned.key,
            identity=planned.identity,
            definitions=planned.definitions,
            inputs={name: self._artifacts[parent.name] for name, parent in planned.step.inputs.items()},
            root=self.store.root,
            tracker=StepTracker(step=planned.step.name, sink=self.sink),
            environment=self.environment,
            objects=self.store.objects,
        )
        # The step's workers hold its resources; the task itself holds none, so that it never starves them.
        task = ray.remote(run_job).options(num_cpus=0, max_retries=0, name=planned.step.name)
        self._running[task.remote(job)] = _Running(planned, time.perf_counter(), attempts)

    def _finish(self, reference: Any) -> None:
        import ray

        running = self._running.pop(reference)
        planned = running.planned
        try:
            result = ray.get(reference)
        except Exception as error:  # process boundary: the task's process died, or Ray lost it
            fault, message = classify(error, self.store.root)
            fault = Fault.INFRASTRUCTURE if fault is Fault.BUG else fault
            result = Failure(step=planned.step.name, fault=fault, message=message, traceback=str(error), retry=True)
        if isinstance(result, Failure):
            if result.retry and running.attempts <= planned.step.max_retries:
                logger.warning("%s: %s; trying again", planned.step.name, result.message)
                self._start(planned, running.attempts + 1)
                return
            self.outcome.failures.append(result)
        self._hold(planned, -1)
        seconds = round(time.perf_counter() - running.started, 3)
        if isinstance(result, Failure):
            record = StepRecord(
                name=planned.step.name, key=planned.key, status="failed", reasons=[result.message], seconds=seconds
            )
            self._record(planned, record, None)
        else:
            self._settle(planned, "ran", result, seconds)

    def _settle(self, planned: PlannedStep, status: Any, manifest: Mapping[str, Any], seconds: float = 0.0) -> None:
        artifact = artifact_of(planned, self.store, manifest)
        self._artifacts[planned.step.name] = artifact
        self.outcome.manifests[planned.step.name] = manifest
        record = StepRecord(
            name=planned.step.name,
            key=planned.key,
            status=status,
            reasons=list(planned.reasons),
            artifact_uri=self.store.artifact_uri(artifact.step, artifact.key),
            seconds=seconds,
            metrics=dict(manifest["metrics"]),
            measured=dict(manifest["measured"]),
        )
        self._record(planned, record, manifest)

    def _record(self, planned: PlannedStep, record: StepRecord, manifest: Mapping[str, Any] | None) -> None:
        self._records[planned.step.name] = record
        self.listener.ended(planned, record, manifest)
