"""The tracker as a Ray actor on the driver's node: the one process of a run that writes to MLflow.

Calls to it are never waited for, except `flush` at the end. Ray starts it again if it dies; it goes on with the same
spool, and a message that it takes twice changes nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.tracking.tracker import Delivery, Destination, Tracker


class TrackerActor:
    """Runs a `Tracker` in its own process."""

    def __init__(self, run: str, spool_folder: Path, destination: Destination, leftovers: Sequence[Path]) -> None:
        self._tracker = Tracker(run, spool_folder, destination, leftovers)

    def receive(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """See `Tracker.receive`."""
        self._tracker.receive(kind, step, payload)

    def put(self, message: Mapping[str, Any]) -> None:
        """See `Tracker.put`."""
        self._tracker.put(message)

    def progress(self) -> dict[str, dict[str, Any]]:
        """The newest progress of each step."""
        return dict(self._tracker.progress)

    def flush(self, timeout_seconds: float) -> Delivery:
        """See `Tracker.flush`."""
        return self._tracker.flush(timeout_seconds)

    def close(self) -> None:
        """See `Tracker.close`."""
        self._tracker.close()


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorSink:
    """A `client.Sink` that sends to the tracker actor."""

    handle: Any

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Fire and forget."""
        self.handle.receive.remote(kind, step, dict(payload))


class TrackerHandle:
    """The driver's end of the tracker actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._asked: Any = None
        self._progress: Mapping[str, Mapping[str, Any]] = {}

    @property
    def sink(self) -> ActorSink:
        """For the steps; can be pickled."""
        return ActorSink(handle=self._actor)

    def put(self, *batch: Mapping[str, Any]) -> None:
        """Sends messages; does not wait."""
        for message in batch:
            self._actor.put.remote(message)

    def progress(self) -> Mapping[str, Mapping[str, Any]]:
        """The newest progress that has arrived; asks for newer, and does not wait for it."""
        import ray

        if self._asked is None:
            self._asked = self._actor.progress.remote()
        elif ray.wait([self._asked], timeout=0)[0]:
            with contextlib.suppress(Exception):  # telemetry boundary: progress is only for show
                self._progress = ray.get(self._asked)
            self._asked = None
        return self._progress

    def finish(self, timeout_seconds: float) -> Delivery:
        """Waits until all is delivered or the time is up, and stops the actor. Raises nothing."""
        import ray

        try:
            delivery: Delivery = ray.get(self._actor.flush.remote(timeout_seconds), timeout=timeout_seconds + 30)
            ray.get(self._actor.close.remote(), timeout=90)
            return delivery
        except Exception as error:  # telemetry boundary: the spool has it all, and `sync` delivers
            return Delivery(complete=False, pending_bytes=0, error=f"the tracker is gone: {type(error).__name__}")


def start_tracker(run: str, spool_folder: Path, destination: Destination, leftovers: Sequence[Path]) -> TrackerHandle:
    """Starts the actor on this node; it delivers the spools `leftovers` of earlier runs too."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    actor = ray.remote(TrackerActor).options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
    )
    return TrackerHandle(actor.remote(run, spool_folder, destination, leftovers))
