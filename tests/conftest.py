"""What the tests share: one local Ray for all that need it, and no telemetry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infra.cluster.environment import apply, run_environment

apply(run_environment())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those on Ray, then whole pipelines; a slow suite should fail early."""

    def cost(item: pytest.Item) -> int:
        names = getattr(item, "fixturenames", ())
        return 2 if item.get_closest_marker("slow") else int("ray_cluster" in names)

    items.sort(key=cost)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Mapping[str, float]]:
    """A local Ray of two CPUs, shared by the whole session."""
    from infra.cluster.config import ClusterConfig
    from infra.cluster.session import ray_session

    with ray_session(ClusterConfig(num_cpus=2)) as resources:
        yield resources


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them: to make one takes seconds, to copy it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path
