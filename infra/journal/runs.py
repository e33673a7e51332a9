"""The records of pipeline runs under ROOT/runs: what `status` prints, and how the runs of the dead are found.

Of a root on an object store each machine has copies of the records: of its own runs, and of those that are over. A copy
of its own that says RUNNING outlives another machine's finding that the run is dead, so that this machine, whose MLflow
store it may be, closes it there too.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infra.journal.process import ProcessIdentity
from infra.storage.files import storage_error, write_json
from infra.storage.store import Store
from infra.tracking.spool import Spool, spools

logger = logging.getLogger(__name__)
RENEW_SECONDS = 60.0
LEASE_SECONDS = 1800.0
"""For how long a run of another host counts as living after it last said so; it does not while it closes itself."""
RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


SECONDS: Any = {"ge": 0, "lt": 1e11}
"""What a clock can show."""


class StepRecord(BaseModel):
    """What one run did with one step."""

    model_config = ConfigDict(frozen=True)

    name: str
    key: str
    status: Literal["ran", "reused", "failed", "blocked"]
    reasons: list[str] = []
    run_id: str | None = None
    """The MLflow run of the step, once MLflow has it."""
    artifact_uri: str | None = None
    seconds: float = 0.0
    metrics: dict[str, Any] = {}
    measured: dict[str, Any] = {}


class RunRecord(BaseModel):
    """One pipeline run."""

    model_config = ConfigDict(frozen=True)

    id: str
    """Our own id: the start time and six random hex characters."""
    pipeline: str
    status: RunStatus
    started_at: float = Field(**SECONDS)
    """Unix seconds."""
    finished_at: float | None = Field(None, **SECONDS)
    renewed_at: float | None = Field(None, **SECONDS)
    """When it last said that it lives, Unix seconds."""
    process: dict[str, Any]
    root: str
    tracking_uri: str
    run_id: str | None = None
    """The MLflow run, once MLflow has it."""
    submission_id: str | None = None
    """The job of a Ray cluster that it ran as; see `fromzero submit`."""
    planned: dict[str, str] = {}
    """Key by step name, known from the start: what a run that is killed was about."""
    steps: list[StepRecord] = []
    errors: list[str] = []


def new_run_id() -> str:
    """A new own id, sortable by time."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def save(store: Store, record: RunRecord) -> None:
    """Writes the record, atomically."""
    store.write(f"runs/{record.id}.json", record.model_dump(mode="json"))


def load_all(store: Store) -> Iterator[RunRecord]:
    """All readable records, newest first."""
    found = _own(store)
    if store.objects:
        names = {name.removesuffix(".json"): f"runs/{name}" for name in store.objects.sizes("runs")}
        known = {record.id: record for record in found if record.id in names and record.status != "RUNNING"}
        data = store.objects.read_all(name for run_id, name in names.items() if run_id not in known)
        fetched = list(_parsed((f"{store.uri}/{name}", one) for name, one in data.items()))
        for record in fetched:
            if record.status != "RUNNING" and not path_of(store, record.id).exists():
                write_json(path_of(store, record.id), record.model_dump(mode="json"))
        found = [*known.values(), *fetched]
    yield from sorted(found, key=lambda record: record.id, reverse=True)


def _own(store: Store) -> list[RunRecord]:
    """The records on this machine."""
    files = {}
    for path in (store.root / "runs").glob("*.json"):
        try:
            files[str(path)] = path.read_bytes()
        except OSError as error:
            logger.warning("%s cannot be read: %s", path, error.strerror)
    return list(_parsed(files.items()))


def _parsed(files: Iterable[tuple[str, bytes]]) -> Iterator[RunRecord]:
    for where, data in files:
        try:
            record = RunRecord.model_validate(json.loads(data))
            if PurePosixPath(where).stem != record.id:
                raise ValueError(f"it is that of {record.id}")
            yield record
        except (ValueError, RecursionError) as error:
            logger.warning("%s is not a run record: %s", where, str(error).partition("\n")[0])


def close_dead(store: Store) -> list[RunRecord]:
    """Closes the runs whose process is gone, or whose host is another and their lease ran out; returns them."""
    closed = []
    for record in {record.id: record for record in (*load_all(store), *_own(store))}.values():
        process = ProcessIdentity.parse(record.process)
        lapsed = time.time() - (record.renewed_at or record.started_at) > LEASE_SECONDS
        if record.status == "RUNNING" and (process is None or process.is_dead() or (lapsed and not process.is_here())):
            closed.append(close_killed(store, record))
    return closed


def close_killed(store: Store, record: RunRecord) -> RunRecord:
    """Marks a run as KILLED, and puts that into its spool for MLflow."""
    dead = record.model_copy(update={"status": "KILLED", "finished_at": time.time()})
    tell_killed(store, record.id)
    save(store, dead)
    return dead


def tell_killed(store: Store, run_id: str) -> None:
    """Puts into the spool of a run that it is over, and with it all of its steps that were going on."""
    message = {"kind": "kill", "id": run_id, "end_time": int(time.time() * 1000)}
    path = store.root / "spool" / f"{run_id}.jsonl"
    try:
        path.parent.mkdir(exist_ok=True)
        Spool(path).append(message)
    except OSError as error:
        raise storage_error(error, path) from error


def leftover_spools(store: Store) -> list[Spool]:
    """What runs that are over left undelivered, oldest first."""
    running = {record.id for record in load_all(store) if record.status == "RUNNING"}
    return [spool for spool in spools(store.root / "spool") if spool.path.stem not in running]


def path_of(store: Store, run_id: str) -> Path:
    """Where the record of a run lies."""
    return store.root / "runs" / f"{run_id}.json"
