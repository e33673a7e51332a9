"""The records of pipeline runs under ROOT/runs: what `status` prints, and how the runs of the dead are found."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from infra.journal.process import ProcessIdentity
from infra.storage.files import write_json
from infra.storage.store import Store
from infra.tracking.spool import Spool, spools

logger = logging.getLogger(__name__)
RENEW_SECONDS = 60.0
LEASE_SECONDS = 1800.0
"""For how long a run of another host counts as living after it last said so; it does not while it closes itself."""
RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


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
    started_at: float
    """Unix seconds."""
    finished_at: float | None = None
    renewed_at: float | None = None
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
    write_json(path_of(store, record.id), record.model_dump(mode="json"))


def load_all(store: Store) -> Iterator[RunRecord]:
    """All readable records, newest first."""
    for path in sorted((store.root / "runs").glob("*.json"), reverse=True):
        try:
            yield RunRecord.model_validate(json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            logger.warning("%s is not a run record: %s", path, error)


def close_dead(store: Store) -> list[RunRecord]:
    """Closes the runs whose process is gone, or whose host is another and their lease ran out; returns them."""
    closed = []
    for record in load_all(store):
        process = ProcessIdentity.parse(record.process)
        lapsed = time.time() - (record.renewed_at or record.started_at) > LEASE_SECONDS
        if record.status == "RUNNING" and (process is None or process.is_dead() or (lapsed and not process.is_here())):
            closed.append(close_killed(store, record))
    return closed


def close_killed(store: Store, record: RunRecord) -> RunRecord:
    """Marks a run as KILLED, and puts that into its spool for MLflow."""
    dead = record.model_copy(update={"status": "KILLED", "finished_at": time.time()})
    message = {"kind": "kill", "id": record.id, "end_time": int(time.time() * 1000)}
    Spool(store.root / "spool" / f"{record.id}.jsonl").append(message)
    save(store, dead)
    return dead


def leftover_spools(store: Store) -> list[Spool]:
    """What runs that are over left undelivered, oldest first."""
    running = {record.id for record in load_all(store) if record.status == "RUNNING"}
    return [spool for spool in spools(store.root / "spool") if spool.path.stem not in running]


def path_of(store: Store, run_id: str) -> Path:
    """Where the record of a run lies."""
    return store.root / "runs" / f"{run_id}.json"
