"""Runs a pipeline: plan, then Ray, the tracker and the execution, then the record of the run.

A run that can reuse everything starts neither Ray nor MLflow.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from infra.cluster.environment import apply, run_environment
from infra.cluster.jobs import own_submission
from infra.cluster.session import available_cpus, available_gpus, ray_session
from infra.errors import ClusterLostError, FromzeroError, ResourceError, UserError
from infra.journal import runs
from infra.journal.claims import claimed_on_cluster
from infra.journal.execution import Execution, Outcome
from infra.journal.lock import claimed, working
from infra.journal.plan import PlannedStep, impossible, make_plan, order
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord, StepRecord
from infra.journal.worker import Failure
from infra.storage.digests import DigestCache
from infra.storage.store import Store
from infra.tracking.actor import start_tracker
from infra.tracking.locations import destination
from infra.tracking.tracker import Destination
from pipelines.config import PipelineConfig
from pipelines.llm import build
from pipelines.origin import Origins
from pipelines.session import Session, close, reused, tell
from pipelines.signals import Interrupts, terminable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A validated pipeline and its plan; nothing has run."""

    pipeline: str
    config: PipelineConfig
    store: Store
    plan: list[PlannedStep]
    cluster: Mapping[str, float]
    """What it has: `CPU`, `GPU`; without bound for one that is not joined yet."""
    until: str | None = None
    """The step that it ends with; without one, the pipeline's last."""
    arguments: tuple[str, ...] = ()
    """Of the command line."""

    def again(self) -> Prepared:
        """The same, planned now."""
        return prepare(self.pipeline, self.config, self.arguments, until=self.until)

    @property
    def is_all_reused(self) -> bool:
        """Whether there is nothing to run."""
        return all(planned.status == "reused" for planned in self.plan)

    @property
    def unmade(self) -> set[tuple[str, str]]:
        """(step, key) of all that is to be made."""
        return {(planned.step.name, planned.key) for planned in self.plan if planned.status == "run"}

    @property
    def destination(self) -> Destination:
        """Where the run is tracked."""
        return destination(self.config.tracking, self.store.root)

    @property
    def tracking_uri(self) -> str:
        """Where the run is tracked."""
        return self.destination.uri


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


def prepare(
    pipeline: str, config: PipelineConfig, arguments: Sequence[str] = (), *, until: str | None = None
) -> Prepared:
    """Resolves the raw files and plans.

    Args:
        pipeline: its name.
        config: of the whole pipeline.
        arguments: of the command line, so that the plan can say which of them changed a step.
        until: a step; only it and what it needs are planned.

    Raises:
        UserError, StorageError: wrong paths, an unusable root, a step that is not there.
    """
    if own_submission() and "://" not in config.storage.root and not Path(config.storage.root).is_absolute():
        raise UserError(
            f"storage.root: {config.storage.root} is relative, and the folder of a job is removed after it; submit "
            "with storage.root=FOLDER, or set FROMZERO_HOME on the cluster: an absolute path that all nodes share"
        )
    store = Store.open(config.storage.root, config.storage.local)
    cluster = {"CPU": float("inf"), "GPU": float("inf")}  # what a cluster has is asked once it is joined
    if config.cluster.address is None:
        cluster = {"CPU": available_cpus(config.cluster), "GPU": available_gpus()}
    with DigestCache.opened(store.root / "cache" / "digests.json") as digests:
        steps = {step.name: step for step in order([build(config, digests)])}
    target = steps.get(until or next(reversed(steps)))
    if target is None:
        raise UserError(f"--until {until}: {pipeline} has no such step; its steps are {', '.join(steps)}")
    plan = make_plan([target], store, cluster, Origins(pipeline, list(arguments)))
    return Prepared(
        pipeline=pipeline,
        config=config,
        store=store,
        plan=plan,
        cluster=cluster,
        until=until,
        arguments=tuple(arguments),
    )


def check_resources(plan: Sequence[PlannedStep], cluster: Mapping[str, float]) -> None:
    """Whether the cluster that was joined can run the plan.

    Raises:
        ResourceError: it never can, a line each step.
    """
    wrong = [f"{p.step.name}: {line}" for p in plan if p.status == "run" for line in impossible(p.step, cluster)]
    if wrong:
        raise ResourceError("; ".join(wrong))


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
        LockedError: another run makes a step that this one needs, or `gc` is at work; nothing was started.
    """
    store = prepared.store
    with working(store.root):
        reused_steps = [(one.step.name, one.key) for one in prepared.plan if one.manifest]
        if not all(store.manifest(*one) for one in reused_steps):  # `gc` was at work since the plan was made
            prepared = prepared.again()
        return _claim(prepared, console)


def _claim(prepared: Prepared, console: Console) -> Result:
    blocked = [planned for planned in prepared.plan if planned.status == "blocked"]
    if blocked:
        raise ResourceError("; ".join(f"{p.step.name}: {', '.join(p.reasons)}" for p in blocked))
    runs.close_dead(prepared.store)
    if prepared.is_all_reused:
        return Result(record=reused(prepared, console))
    with claimed(prepared.store.root / "locks", prepared.unmade):
        # another run may have ended before the claim was had
        now = prepared.again()
        if now.is_all_reused:
            return Result(record=reused(now, console))
        if now.unmade <= prepared.unmade:
            return _execute(now, console)
    return _claim(now, console)  # raw files changed in between


def _execute(prepared: Prepared, console: Console) -> Result:
    store, run = prepared.store, runs.new_run_id()
    record = RunRecord(
        id=run,
        pipeline=prepared.pipeline,
        status="RUNNING",
        started_at=time.time(),
        process=ProcessIdentity.current().to_json(),
        root=store.uri,
        tracking_uri=prepared.tracking_uri,
        submission_id=own_submission(),
        planned={planned.step.name: planned.key for planned in prepared.plan},
    )
    runs.save(store, record)
    apply(run_environment())
    outcome, delivery, is_tracked, interrupts = Outcome(), None, False, Interrupts()
    status: runs.RunStatus = "KILLED"
    try:
        with (
            terminable(interrupts),
            ray_session(prepared.config.cluster) as cluster,
            terminable(interrupts),  # Ray sets its own handler
            contextlib.ExitStack() as claims,
        ):
            if prepared.config.cluster.address:
                prepared = _claim_on_cluster(prepared, run, claims)
            check_resources(prepared.plan, cluster.resources)
            is_tracked = True
            leftovers = [spool.path for spool in runs.leftover_spools(store)]
            tracker = start_tracker(run, store.root / "spool", prepared.destination, leftovers)
            session = Session(prepared, record, tracker, console)
            session.begin()
            execution = Execution(
                prepared.plan, store, tracker.sink, cluster.resources, session.facts, session.listener(interrupts)
            )
            outcome = execution.outcome
            try:
                execution.run()
                status = "FAILED" if outcome.failures else "FINISHED"
            except KeyboardInterrupt:
                cluster.check()
                delivery = session.end(status, outcome)
                raise
            delivery = session.end(status, outcome)
    except ClusterLostError as error:
        status, record = "KILLED", _with_error(record, error)
        raise
    except Exception as error:
        status, record = "FAILED", _with_error(record, error)
        raise
    finally:
        record = close(record, prepared, outcome, delivery, status)
        try:
            if delivery is None and is_tracked:
                runs.tell_killed(store, run)
            runs.save(store, record)
        except (
            FromzeroError,
            OSError,
        ) as error:  # the result is worth more than its record; `close_dead` closes that later
            console.say(f"the record of the run is not written: {error}")
    if delivery:
        tell(delivery, console)
    return Result(record=record, failures=tuple(outcome.failures))


def _with_error(record: RunRecord, error: Exception) -> RunRecord:
    told = str(error) if isinstance(error, FromzeroError) else f"{type(error).__name__}: {error}"
    return record.model_copy(update={"errors": [*record.errors, *told.splitlines()[:1]]})


def _claim_on_cluster(prepared: Prepared, run: str, claims: contextlib.ExitStack) -> Prepared:
    """Claims what is to be made, also against drivers on other nodes; the plan as it then is.

    Raises:
        LockedError: another run makes one of the steps.
    """
    while True:
        claims.enter_context(claimed_on_cluster(prepared.store.uri, prepared.unmade, run))
        now = prepared.again()
        if now.unmade <= prepared.unmade:
            return now
        prepared = now  # raw files changed in between
