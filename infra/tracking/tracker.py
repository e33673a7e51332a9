"""The run's tracker: takes messages, writes them to the spool at once, and uploads in the background.

`receive` costs a line on disk. The upload runs in a thread with a circuit breaker: a server that is away is tried
again after 1, 2, 4 ... 30 s. All that a tracker knows is in the spool, so one that was killed goes on where it was.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import FromzeroError, InfrastructureError, LockedError
from infra.journal.lock import exclusive
from infra.journal.process import ProcessIdentity
from infra.storage.files import storage_error
from infra.tracking import messages
from infra.tracking.spool import Line, Spool
from infra.tracking.writer import Writer, is_permanent

logger = logging.getLogger(__name__)
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
GATHER_SECONDS = 5.0
"""How long messages gather into one batch: a call to MLflow costs as much for one point as for fifty."""
ATTEMPTS = 3
LOCK_SECONDS = 60.0
"""How long to wait for another process that opens the same database or delivers: either takes some seconds."""
DISK_FULL = ("No space left", "disk is full", "disk I/O error")


@dataclass(frozen=True, kw_only=True, slots=True)
class Destination:
    """Which MLflow, and where its small artifacts go."""

    uri: str
    experiment: str
    artifact_location: str | None
    """Only for a store of our own; a server decides for itself."""

    @property
    def database(self) -> Path | None:
        """The file of a SQLite store."""
        return database_of(self.uri)

    @property
    def _is_readable_only(self) -> bool:
        """Whether it is a SQLite store in somebody else's root."""
        return bool(self.database and self.database.exists() and not os.access(self.database.parent, os.W_OK))

    def open(self) -> Writer:
        """Connects; makes the database and the experiment if they are not there.

        One process at a time opens a SQLite file, because two that make one break it for good (MLflow 3.17).

        Raises:
            LockedError: another process has been opening it for a minute.
            StorageError, UserError: its folder cannot be written.
            InfrastructureError: it does not answer, or is damaged.
        """
        with contextlib.ExitStack() as held:
            if self.database and not self._is_readable_only:
                try:
                    self.database.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise storage_error(error, self.database.parent) from error
                lock = self.database.with_name(f"{self.database.name}.lock")
                held.enter_context(exclusive(lock, "the MLflow store", LOCK_SECONDS))
            try:
                return Writer(self.uri, self.experiment, self.artifact_location)
            except Exception as error:  # telemetry boundary: MLflow raises whatever its database or network raises
                raise InfrastructureError(self.told(error)) from error

    def told(self, error: Exception) -> str:
        """One line on what MLflow raised."""
        if isinstance(error, FromzeroError):
            return str(error)
        text = str(error).partition("\n")[0]
        if "API request to" in text and "failed with" in text and "error code" not in text:
            return f"{self.uri} does not answer"
        return f"{self.uri} failed: {type(error).__name__}: {text}"


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None


@dataclass(kw_only=True, slots=True)
class Delivery:
    """How the delivery of one spool stands."""

    complete: bool
    pending_bytes: int
    error: str | None = None
    kept_aside: list[str] = field(default_factory=list)
    """For the user: how much was damaged or refused, and in which file it is."""
    run_ids: dict[str, str] = field(default_factory=dict)


class Connection:
    """This process's way to one MLflow store, which one process at a time writes to.

    Args:
        destination: the store.
        lock_path: the writer's lock.
    """

    def __init__(self, destination: Destination, lock_path: Path) -> None:
        self.destination = destination
        self._lock_path = lock_path
        self._writer: Writer | None = None

    @contextlib.contextmanager
    def writing(self, wait_seconds: float = 0) -> Iterator[Writer]:
        """The writer, while no other process writes.

        Args:
            wait_seconds: how long to wait for another process that does.

        Raises:
            LockedError: it still does.
            StorageError, UserError, InfrastructureError: the store cannot be opened.
        """
        with exclusive(self._lock_path, "the MLflow store", wait_seconds) as last:
            if self._writer is None:
                self._writer = self.destination.open()
            elif last != ProcessIdentity.current():
                self._writer.forget()
            try:
                yield self._writer
            except Exception:  # whatever it was, what was known of the store may be wrong now: look again
                self._writer = None
                raise


class Uploader:
    """Delivers one spool."""

    def __init__(self, spool: Spool, connection: Connection) -> None:
        self.spool = spool
        self.error: str | None = None
        self._connection = connection
        self._is_reached = False
        self._settled: set[int] = set()
        """Positions of lines that must not be applied again: refused, or applied before their turn."""

    @property
    def is_done(self) -> bool:
        """Whether the store was reached and has all."""
        return self._is_reached and not self.spool.pending_bytes

    def deliver(self, *, final: bool = False, wait_seconds: float = 0) -> bool:
        """Delivers what is there; True if nothing is left. Keeps the reason in `error` otherwise.

        Args:
            final: nobody appends any more.
            wait_seconds: how long to wait for another process that delivers.
        """
        if self.is_done:
            return True
        self._is_reached = False
        try:
            with self._connection.writing(wait_seconds) as writer:
                while lines := self.spool.read(final=final):
                    self._deliver(lines, writer)
                self._is_reached, self.error = True, None
                return not self.spool.pending_bytes
        except LockedError:
            self.error = "another process is writing to the same MLflow store"
        except Exception as error:  # telemetry boundary: whatever MLflow raises, the spool keeps the messages
            self.error = self._connection.destination.told(error)
            logger.debug("delivery failed", exc_info=True)
        return False

    def deliver_whole(self) -> bool:
        """The same for a spool to which nobody appends any more; tries again, and gives up where nothing moves."""
        failures = 0
        while not self.deliver(final=True, wait_seconds=LOCK_SECONDS):
            position = self.spool.position
            failures += 1
            if failures == ATTEMPTS:
                return False
            time.sleep(FIRST_PAUSE_SECONDS * failures)
            failures = 0 if self.spool.position > position else failures
        return True

    def state(self) -> Delivery:
        """How it stands."""
        pending = self.spool.pending_bytes
        return Delivery(
            complete=pending == 0,
            pending_bytes=pending,
            error=self.error,
            kept_aside=self.spool.kept_aside,
            run_ids=self.spool.run_ids,
        )

    def _deliver(self, lines: list[Line], writer: Writer) -> None:
        """One batch. What is done when it fails stays done, so that a shaky server gets on too."""
        done = lines[0].start
        try:
            for line in lines:  # first, because Ray may hand over a message before the one that makes its run
                if line.kind == "run":
                    self._apply([line], writer)
            for group in _groups(lines):
                if group[0].message is None:
                    self.spool.set_aside(group[0])
                else:
                    self._apply(group, writer)
                done = group[-1].end
        finally:
            self.spool.advance(done, writer.run_ids)

    def _apply(self, group: Sequence[Line], writer: Writer) -> None:
        first = group[0]
        if first.start in self._settled:
            return
        message = _merged(group)
        try:
            writer.apply(message)
            if first.kind == "run":
                self._settled.add(first.start)
        except Exception as error:
            if not is_permanent(error):
                raise
            if len(group) > 1:  # one bad point does not take the others with it
                for line in group:
                    self._apply([line], writer)
            else:
                self.spool.reject(message, error)
                self._settled.add(first.start)


class Tracker:
    """One pipeline run's tracker. Threads may call it; one process only.

    Args:
        run: our own id of the pipeline's run.
        spool_folder: on a local disk.
        destination: where everything goes.
        leftovers: spools of earlier runs. They go first, or an alias could end on the older model.
    """

    def __init__(self, run: str, spool_folder: Path, destination: Destination, leftovers: Sequence[Path] = ()) -> None:
        self.run = run
        self.spool = Spool(spool_folder / f"{run}.jsonl")
        self.progress: dict[str, dict[str, Any]] = {}
        connection = Connection(destination, spool_folder / "writer.lock")
        self._leftovers = [Uploader(Spool(path), connection) for path in leftovers]
        self.uploader = Uploader(self.spool, connection)
        self._uri = destination.uri
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stop = threading.Event()
        self._spool_error: str | None = None
        self._thread = threading.Thread(target=self._upload, name="mlflow-upload", daemon=True)
        self._thread.start()

    def receive(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Takes a message of a step: `metrics`, `remade`, `trial`, `table` or `progress` (see `client.StepTracker`)."""
        own_id = f"{self.run}/{step}"
        if kind == "progress":
            self.progress[step] = dict(payload)
        elif kind in ("metrics", "remade"):
            self._points(kind, own_id, payload["metrics"], payload["step"], payload["time"])
        elif kind == "table":
            self.put(messages.table(own_id, payload["name"], json.dumps(payload["table"], ensure_ascii=False)))
        elif kind == "trial":
            for message in messages.trial(own_id, payload["trial"], int(time.time() * 1000)):
                self.put(message)

    def put(self, message: Mapping[str, Any]) -> None:
        """Spools a message for the writer."""
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
        self._hurry.set()
        self._wake.set()
        uploaders = [*self._leftovers, self.uploader]
        while time.monotonic() < deadline and not all(one.is_done for one in uploaders):
            if self._spool_error or any(words in (one.error or "") for words in DISK_FULL for one in uploaders):
                break  # waiting does not empty a disk
            time.sleep(0.05)
        states = [one.state() for one in uploaders]
        state = states[-1]
        state.complete = all(one.is_done for one in uploaders)
        state.error = self._spool_error or next((one.error for one in states if one.error), None)
        state.kept_aside = [line for one in states for line in one.kept_aside]
        if not state.complete and state.error is None:
            state.error = f"{self._uri} has not answered yet"
        return state

    def close(self) -> None:
        """Stops the upload thread; removes the spool if nothing is left in it."""
        self._stop.set()
        self._hurry.set()
        self._wake.set()
        self._thread.join(timeout=5)  # it may hang in a call to a server that is gone: the process ends all the same
        if not self.spool.pending_bytes:
            self.spool.remove()

    def _points(self, kind: str, own_id: str, metrics: Mapping[str, float], step: int, seconds: float) -> None:
        points = [[key, float(value), step, int(seconds * 1000)] for key, value in metrics.items()]
        self.put({"kind": kind, "id": own_id, "points": points})

    def _upload(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            self._wake.clear()
            if self._deliver():
                pause = FIRST_PAUSE_SECONDS
                self._wake.wait()
                self._hurry.wait(GATHER_SECONDS)
            elif self._hurry.wait(pause):
                self._stop.wait(FIRST_PAUSE_SECONDS)
            else:
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    def _deliver(self) -> bool:
        """Delivers each spool after those before it; True if nothing is left."""
        for leftover in self._leftovers:
            if not leftover.deliver(final=True):
                return False
            with contextlib.suppress(OSError):  # then it is delivered again, and changes nothing
                leftover.spool.remove()
        return self.uploader.deliver()


def _groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """The lines, with metric points of one run that follow one another in one group."""

    def key(line: Line) -> object:
        message = line.message
        return message["id"] if message and message["kind"] == "metrics" else line.start

    return (list(group) for _, group in itertools.groupby(lines, key))


def _merged(group: Sequence[Line]) -> dict[str, Any]:
    """One message of a group."""
    messages = [line.message for line in group if line.message]
    if len(messages) == 1:
        return messages[0]
    return {**messages[0], "points": [point for message in messages for point in message["points"]]}
