"""The tracker as a Ray actor on the driver's node: the one process of a run that writes to MLflow.

Calls to it are never waited for, except `flush` at the end. Ray starts it again if it dies; it goes on with the same
spool, and a message that it takes twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.tracking.tracker import Delivery, Destination, Tracker


@dataclass(frozen=True, kw_only=True, slots=True)
class ActorSink:
    """A `client.Sink` that sends to the tracker actor."""

    handle: Any

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Fire and forget."""
        self.handle.receive.remote(kind, step, dict(payload))


class TrackerActor:
    """Runs a `Tracker` in its own process."""

    def __init__(self, run: str, spool_folder: str, destination: Destination) -> None:
        self._tracker = Tracker(run, Path(spool_folder), destination)

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


def start_tracker(run: str, spool_folder: Path, destination: Destination) -> Any:
    """Starts the actor on this node; returns its handle."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    actor = ray.remote(TrackerActor).options(
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node, soft=False),
    )
    return actor.remote(run, str(spool_folder), destination)
