"""The worker's side of tracking: fire and forget.

`StepTracker` is what a step and its workers hold. It hands points to the run's tracker and returns at once; a tracker
that is slow, dead or absent never stops or slows a training. It can be pickled into any Ray worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from infra.tracking.records import TrialRecord

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Where points go: the tracker actor's handle, or a list in a test."""

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Takes one message; must not block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NullSink:
    """Takes everything and keeps nothing: a step run by itself."""

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """Drops the message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTracker:
    """Metrics and progress of one step."""

    step: str
    sink: Sink = NullSink()

    def log_metrics(self, metrics: Mapping[str, float], training_step: int, *, remade: bool = False) -> None:
        """Sends the points of one training step to the step's MLflow run.

        Args:
            metrics: values by name; of two of the same name and step the first counts, as after a resume,
            training_step: the step.
            remade: but then, as after a rollback, they differ on purpose: one that has another value is added.
        """
        kind = "remade" if remade else "metrics"
        self._send(kind, {"metrics": dict(metrics), "step": training_step, "time": time.time()})

    def log_trial(self, trial: TrialRecord) -> None:
        """Sends a trial as it stands now; sending it again with a longer history adds only what is new."""
        self._send("trial", {"trial": trial.model_dump(mode="json")})

    def log_table(self, name: str, table: Mapping[str, Any]) -> None:
        """Sends a table whole, as it stands now, to the step's MLflow run.

        Args:
            name: of its artifact, ending in `.json`; the same name replaces it.
            table: `{"columns": [...], "data": [[...], ...]}`.
        """
        self._send("table", {"name": name, "table": dict(table)})

    def progress(self, done: float, total: float, unit: str, *, note: str = "") -> None:
        """Tells how far the step is: `done` of `total` `unit`s. The console shows rate and time left."""
        self._send("progress", {"done": done, "total": total, "unit": unit, "note": note, "time": time.time()})

    def _send(self, kind: str, payload: Mapping[str, Any]) -> None:
        try:
            self.sink.send(kind, self.step, payload)
        except Exception:  # telemetry boundary: a dead tracker must not end a training
            logger.debug("tracker did not take a %s message", kind, exc_info=True)
