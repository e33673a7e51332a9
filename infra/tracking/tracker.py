"""The run's tracker: takes messages, writes them to the spool at once, and uploads in the background.

`receive` costs a line on disk. The upload runs in a thread with a circuit breaker: a server that is away is tried
again after 1, 2, 4 ... 30 s. A new SQLite store is made under the writer's lock, because two processes that make one
at the same time break it for good (MLflow 3.17).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import LockedError
from infra.journal.lock import exclusive
from infra.tracking import messages
from infra.tracking.spool import Spool
from infra.tracking.writer import Writer, is_permanent

logger = logging.getLogger(__name__)
LONGEST_PAUSE_SECONDS = 30.0
DISK_FULL = ("No space left", "disk is full", "disk I/O error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Which MLflow, and where its small artifacts go."""

    uri: str
    experiment: str
    artifact_location: str | None
    """Only for a store of our own; a server decides for itself."""

    def open(self) -> Writer:
        """Connects; makes the database and the experiment if they are not there."""
        return Writer(self.uri, self.experiment, self.artifact_location)


@dataclass(kw_only=True, slots=True)
class Delivery:
    """How the delivery of one spool stands."""

    complete: bool
    pending_bytes: int
    error: str | None = None
    rejected: int = 0
    run_ids: dict[str, str] = field(default_factory=dict)


class Uploader:
    """Delivers one spool to one destination."""

    def __init__(self, spool: Spool, destination: Destination, lock_path: Path) -> None:
        self.spool = spool
        self.destination = destination
        self.lock_path = lock_path
        self.error: str | None = None
        self.rejected = 0
        self.run_ids: dict[str, str] = {}
        self._writer: Writer | None = None

    def deliver(self, *, final: bool = False) -> bool:
        """Delivers what is there; True if nothing is left. Keeps the reason in `error` otherwise."""
        if not self.spool.pending_bytes and self._writer:
            return True
        try:
            with exclusive(self.lock_path, "the MLflow store"):
                return self._deliver(final)
        except LockedError:
            self.error = "another process is writing to the same MLflow store"
            return False
        except Exception as error:  # telemetry boundary: whatever MLflow raises, the spool keeps the messages
            self.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            logger.debug("delivery failed", exc_info=True)
            return False

    def _deliver(self, final: bool) -> bool:
        if self._writer is None:
            self._writer = self.destination.open()
        while True:
            messages, position = self.spool.read(final=final)
            if not messages:
                self.spool.advance(position)
                self.error = None
                return self.spool.pending_bytes == 0
            for message in _merged(messages):
                try:
                    self._writer.apply(message)
                except Exception as error:
                    if not is_permanent(error):
                        raise
                    self.rejected += 1
                    logger.warning("MLflow refuses a message of kind %s: %s", message["kind"], error)
                    self.spool.reject(message, error)
            self.spool.advance(position)
            self.run_ids = dict(self._writer.run_ids)

    def state(self) -> Delivery:
        """How it stands."""
        pending = self.spool.pending_bytes
        return Delivery(
            complete=pending == 0,
            pending_bytes=pending,
            error=self.error,
            rejected=self.rejected,
            run_ids=dict(self.run_ids),
        )


class Tracker:
    """One pipeline run's tracker. Threads may call it; one process only."""

    def __init__(self, run: str, spool_folder: Path, destination: Destination, leftovers: Sequence[Path] = ()) -> None:
        self.run = run
        self._leftovers = list(leftovers)
        self.spool = Spool(spool_folder / f"{run}.jsonl")
        self.uploader = Uploader(self.spool, destination, spool_folder / "writer.lock")
        self.progress: dict[str, dict[str, Any]] = {}
        self._sent: set[tuple[str, str, int]] = set()
        """(own id, metric, training step) of every point of this run."""
        self._wake = threading.Event()
        self._stop = False
        self._spool_error: str | None = None
        self._thread = threading.Thread(target=self._upload, name="mlflow-upload", daemon=True)
        self._thread.start()

    def receive(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Takes a message of a step: `metrics`, `trial` or `progress` (see `client.StepTracker`)."""
        own_id = f"{self.run}/{step}"
        if kind == "progress":
            self.progress[step] = dict(payload)
        elif kind == "metrics":
            self._points(own_id, payload["metrics"], payload["step"], payload["time"])
        elif kind == "trial":
            for message in messages.trial(own_id, payload["trial"], int(time.time() * 1000)):
                self.put(message)

    def put(self, message: Mapping[str, Any]) -> None:
        """Spools a message for the writer.

        A point at a training step that this run already has is dropped: a resumed training sends some again, and a
        step's last metrics may stand in its curve already.
        """
        if message["kind"] == "metrics":
            message = {
                **message,
                "points": [point for point in message["points"] if self._is_new(message["id"], point)],
            }
            if not message["points"]:
                return
        try:
            self.spool.append(message)
        except OSError as error:  # telemetry boundary: a full disk is the run's error to report, not the tracker's
            self._spool_error = str(error)
            return
        self._wake.set()

    def flush(self, timeout_seconds: float) -> Delivery:
        """Waits until all is delivered, or the time is up."""
        deadline = time.monotonic() + timeout_seconds
        self.spool.sync()
        self._wake.set()
        while time.monotonic() < deadline and (self.spool.pending_bytes or not self.uploader._writer):
            if self._spool_error or any(words in (self.uploader.error or "") for words in DISK_FULL):
                break  # waiting does not empty a disk
            time.sleep(0.05)
        state = self.uploader.state()
        state.error = self._spool_error or state.error
        if not state.complete and state.error is None:
            state.error = f"{self.uploader.destination.uri} has not answered yet"
        return state

    def close(self) -> None:
        """Stops the upload thread; removes the spool if nothing is left in it."""
        self._stop = True
        self._wake.set()
        self._thread.join(timeout=60)
        if not self.spool.pending_bytes:
            self.spool.remove()

    def _is_new(self, own_id: str, point: Sequence[Any]) -> bool:
        place = (own_id, point[0], point[2])
        if place in self._sent:
            return False
        self._sent.add(place)
        return True

    def _points(self, own_id: str, metrics: Mapping[str, float], step: int, seconds: float) -> None:
        points = [[key, float(value), step, int(seconds * 1000)] for key, value in metrics.items()]
        self.put({"kind": "metrics", "id": own_id, "points": points})

    def _upload(self) -> None:
        for path in self._leftovers:  # of earlier runs; what cannot be delivered now waits for the next run or `sync`
            uploader = Uploader(Spool(path), self.uploader.destination, self.uploader.lock_path)
            if uploader.deliver(final=True):
                uploader.spool.remove()
        pause = 1.0
        while not self._stop:
            self._wake.clear()
            if self.uploader.deliver():
                pause = 1.0
                self._wake.wait(timeout=1.0)
                time.sleep(0.2)  # lets messages gather into one batch
            else:
                time.sleep(min(pause, 0.2) if self._stop else pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)


def _merged(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages, with metric points of one run that follow one another in one message."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else None
        if last and message["kind"] == last["kind"] == "metrics" and message["id"] == last["id"]:
            merged[-1] = {**last, "points": [*last["points"], *message["points"]]}
        else:
            merged.append(message)
    return merged
