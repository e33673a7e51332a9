"""Where MLflow lies for a root: a server, or a SQLite file and a folder of our own."""

from __future__ import annotations

from pathlib import Path

from infra.tracking.config import TrackingConfig
from infra.tracking.tracker import Destination


def destination(config: TrackingConfig, root: Path) -> Destination:
    """The tracking store of `root` under `config`."""
    uri = config.uri or f"sqlite:///{root / 'mlflow.db'}"
    ours = not uri.startswith("http")  # a server decides for itself
    location = (root / "mlartifacts").as_uri() if ours else None
    return Destination(uri=uri, experiment=config.experiment, artifact_location=location)
