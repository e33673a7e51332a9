"""What the tests share: one local Ray for all that need it, and no telemetry."""

from __future__ import annotations

import uuid
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

    with ray_session(ClusterConfig(num_cpus=2)) as cluster:
        yield cluster.resources


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_uri(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix there; the environment of this process and its children leads to it."""
    from pyarrow.fs import FileSystem

    variables = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    filesystem, bucket = FileSystem.from_uri("s3://fromzero-test?allow_bucket_creation=true")
    filesystem.create_dir(bucket)
    return f"s3://fromzero-test/{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them: to make one takes seconds, to copy it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path
