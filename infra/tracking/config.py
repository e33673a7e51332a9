"""Where runs are tracked. Nothing here can change a key."""

from __future__ import annotations

from infra.journal.config import FrozenConfig, execution_field


class TrackingConfig(FrozenConfig):
    """The MLflow store and how long a run waits for it."""

    uri: str | None = execution_field(None, description="MLflow tracking URI; without it ROOT/mlflow.db (SQLite)")
    experiment: str = execution_field("fromzero", description="MLflow experiment name", min_length=1)
    flush_timeout_seconds: float = execution_field(
        180, ge=0, description="how long a run waits at its end for a tracking server that is away, seconds"
    )
