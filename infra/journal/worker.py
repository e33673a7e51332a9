"""What happens inside one step's Ray task: lock, check of the inputs, attempt, commit; or a failure as a plain value.

The inputs' digests are compared once more, because an artifact may have been damaged since the plan: 0.1 s for the
94 MB that the steps of the default take from one another (1 GB/s), and a step reads them anyway.

A failure comes back as data, not as an exception, because an exception from a step may not unpickle in the driver.
"""

from __future__ import annotations

import math
import shutil
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.errors import DamagedArtifactError, DiskFullError, Fault, FromzeroError, LockedError
from infra.journal.key import encode
from infra.journal.lock import exclusive, working
from infra.journal.step import Artifact, Step, StepContext
from infra.storage.objects import ObjectStore
from infra.storage.raw import RawFile
from infra.storage.store import Store
from infra.storage.units import FOLDER as UNITS
from infra.tracking.client import StepTracker
from infra.tracking.records import RECORDS

ALMOST_FULL_BYTES = 1024 * 1024
OUTLIVED_SECONDS = 60.0
"""How long the process of a step may go on after its driver was killed: Ray ends it within seconds, on a busy machine
within many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that a step's task needs, on any node."""

    step: Step
    key: str
    identity: Mapping[str, Any]
    definitions: Mapping[str, Mapping[str, str]]
    inputs: Mapping[str, Artifact]
    root: Path
    tracker: StepTracker
    environment: Mapping[str, Any]
    """Facts for the manifest: git commit, host, the run's id."""
    objects: ObjectStore | None = None
    """Of the root, if it is on an object store."""
    outlived_seconds: float = OUTLIVED_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a step failed."""

    step: str
    fault: Fault
    message: str
    traceback: str
    retry: bool = False
    """Whether the same attempt may do better: not where a disk is full, an input damaged or a lock held."""


def run_job(job: Job) -> dict[str, Any] | Failure:
    """Makes the artifact of one step; returns its manifest, or the failure."""
    store = Store(root=job.root, objects=job.objects)
    name, key = job.step.name, job.key
    temporary: Path | None = None
    try:
        store.make_folders()
        # This run has claimed the step; whoever holds it has outlived the driver of a run that is over.
        path = store.root / "locks" / f"{name}-{key}.lock"
        lock = exclusive(path, f"{name} {key[:12]}", job.outlived_seconds)
        with working(store.root), lock:
            made = _found(store, name, key)
            if made is not None:  # by a run that ended just before this one got the lock
                return made
            _check_inputs(job, store)
            temporary = store.begin(name, key)
            return _make(job, store, temporary)
    except Exception as error:  # process boundary: every failure of a step becomes a value that the driver can read
        return _failure(name, error, store.root)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _found(store: Store, name: str, key: str) -> dict[str, Any] | None:
    try:
        return store.find(name, key)
    except DamagedArtifactError:
        return None


def _check_inputs(job: Job, store: Store) -> None:
    for artifact in job.inputs.values():
        try:
            store.fetch(artifact.step, artifact.key)
        except DamagedArtifactError as error:
            raise DamagedArtifactError(
                f"its input {artifact.step} was damaged since the run began: {error}; run again: it will be made anew"
            ) from error


def _make(job: Job, store: Store, temporary: Path) -> dict[str, Any]:
    started_at, started = time.time(), time.perf_counter()
    context = StepContext(
        step=job.step.name,
        key=job.key,
        output=temporary,
        work=store.work_folder(job.step.name, job.key),
        raw=job.step.raw,
        tracker=job.tracker,
        units=store.root / UNITS,
        mirror=store.mirror,
    )
    output = job.step.load()(job.step.config, job.inputs, context)
    encode(output.metrics, f"{job.step.name}.metrics")
    content = {
        "step": job.step.name,
        "key": job.key,
        "identity": job.identity,
        "definitions": job.definitions,
        "config": job.step.config.model_dump(mode="json"),
        "inputs": {name: {"step": a.step, "key": a.key} for name, a in sorted(job.inputs.items())},
        "raw": {
            source: _raw_entries(files, output.num_rows.get(source)) for source, files in sorted(job.step.raw.items())
        },
        "units": {kind: list(keys) for kind, keys in sorted(output.units.items())},
        "metrics": dict(output.metrics),
        "measured": {"seconds": round(time.perf_counter() - started, 3), **_finite(output.measured)},
        "records": RECORDS.dump_python(output.records, mode="json"),
        "started_at": started_at,
        "finished_at": time.time(),
        **job.environment,
    }
    return store.commit(temporary, job.step.name, job.key, content)


def _finite(measured: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity and no NaN, and a rate over no time is one."""
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in measured.items()}


def _raw_entries(files: Sequence[RawFile], num_rows: Sequence[int] | None) -> list[dict[str, Any]]:
    counts = num_rows if num_rows is not None else [None] * len(files)
    return [
        {"path": f.path, "sha256": f.digest, "num_bytes": f.num_bytes, "num_rows": count}
        for f, count in zip(files, counts, strict=True)
    ]


def _failure(step: str, error: Exception, root: Path) -> Failure:
    fault, message = classify(error, root)
    return Failure(
        step=step,
        fault=fault,
        message=message,
        traceback="".join(traceback.format_exception(error)),
        retry=fault is Fault.INFRASTRUCTURE
        and not message.startswith("no space left")
        and not isinstance(error, LockedError | DamagedArtifactError),
    )


def classify(error: BaseException, root: Path) -> tuple[Fault, str]:
    """Whose fault `error` is, and one clear message; looks through the causes that Ray wraps around an error."""
    chain = list(_causes(error))
    if any(_is_disk_full(cause) for cause in chain) or _free_bytes(root) < ALMOST_FULL_BYTES:
        return Fault.INFRASTRUCTURE, str(
            DiskFullError(f"no space left on the disk of {root}; free some, then run again: finished steps are kept")
        )
    for cause in chain:
        if isinstance(cause, FromzeroError):
            return cause.fault, str(cause)
    for cause in chain:
        if isinstance(cause, OSError | MemoryError) or type(cause).__name__ in _INFRASTRUCTURE:
            return Fault.INFRASTRUCTURE, f"{type(cause).__name__}: {cause}"
    return Fault.BUG, f"{type(error).__name__}: {error}"


_INFRASTRUCTURE = {
    "WorkerCrashedError",
    "NodeDiedError",
    "OutOfMemoryError",
    "ActorDiedError",
    "ActorUnavailableError",
    "RayActorError",
    "ObjectLostError",
    "WorkerGroupStartupTimeoutError",
    "RaySystemError",
    "LocalRayletDiedError",
}


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if current is None or any(current is other for other in found):
            continue
        found.append(current)
        waiting += [current.__cause__, current.__context__, getattr(current, "cause", None)]
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, Mapping):
            waiting += [failure for failure in failures.values() if isinstance(failure, BaseException)]
    return [cause for cause in found if isinstance(cause, BaseException)]


def _is_disk_full(error: BaseException) -> bool:
    return isinstance(error, DiskFullError) or getattr(error, "errno", None) == 28 or "No space left" in str(error)


def _free_bytes(root: Path) -> int:
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return ALMOST_FULL_BYTES
