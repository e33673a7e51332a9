"""Where runs are tracked. Nothing here can change a key."""

from __future__ import annotations

from pathlib import Path

from pydantic import field_validator

from infra.journal.config import FrozenConfig, execution_field

DATABASES = ("postgresql", "mysql", "mssql")


class TrackingConfig(FrozenConfig):
    """The MLflow store and how long a run waits for it."""

    uri: str | None = execution_field(None, description="MLflow tracking URI; without it ROOT/mlflow.db (SQLite)")
    experiment: str = execution_field("fromzero", description="MLflow experiment name", min_length=1)
    flush_timeout_seconds: float = execution_field(
        180, ge=0, description="how long a run waits at its end for a tracking server that is away, seconds"
    )

    @field_validator("uri")
    @classmethod
    def _known(cls, uri: str | None) -> str | None:
        """A SQLite file by its absolute path: the process that writes to it works in another folder."""
        if uri is None or uri.startswith(("http://", "https://")):
            return uri
        scheme, found, rest = uri.partition("://")
        if found and scheme == "sqlite" and rest.startswith("/") and rest != "/":
            return f"sqlite:///{Path(rest[1:]).absolute()}"
        if found and scheme.partition("+")[0] in DATABASES:
            return uri
        raise ValueError(f"write http(s)://HOST, sqlite:///FILE, or {', '.join(DATABASES)}://...")
