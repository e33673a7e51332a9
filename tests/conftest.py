"""What the tests share: one local Ray and one MLflow server for all that need them, and no telemetry."""

from __future__ import annotations

import functools
import logging
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.cluster.environment import apply, run_environment
from infra.tracking.tracker import Destination
from tests.servers import MlflowServer, postgresql

apply(run_environment())


ON_A_SERVER = ("mlflow_server: MlflowServer", "store: Destination")
"""How test files ask for the MLflow server, which takes a while to start."""
SHARED = {"the smoke run": ("smoke: Smoke",), "the MLflow server": ON_A_SERVER}
"""What a process makes once for all test files that ask for it."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals the tests out by file to the processes that `make test` has; files that share what is slow to make go
    together.

    Not `--dist loadgroup`, which does nothing with pytest 9.2 (pytest-xdist 3.8).
    """
    from xdist.scheduler import LoadFileScheduling

    class ByShared(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = str(super()._split_scope(nodeid))
            return next((name for name, asked in SHARED.items() if asks(config.rootpath / path, asked)), path)

    return ByShared(config, log)


@functools.cache
def asks(path: Path, how: tuple[str, ...]) -> bool:
    """Whether tests of this file ask for something in one of these ways."""
    text = path.read_text("utf-8")
    return any(one in text for one in how)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then those on a server or on Ray, then whole pipelines; a slow suite should fail early."""

    def cost(item: pytest.Item) -> int:
        if item.get_closest_marker("slow"):
            return 3
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            return 2
        return int(asks(item.path, ON_A_SERVER))

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

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # it tells every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def s3_variables(s3_server: str) -> Mapping[str, str]:
    """What leads there."""
    return {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def s3_uri(s3_variables: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix there; the environment of this process and its children leads to it."""
    from pyarrow.fs import FileSystem

    for name, value in s3_variables.items():
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


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """`mlflow server` on PostgreSQL, shared by the whole session; a test that kills it starts it again."""
    with postgresql() as database:
        server = MlflowServer(database, tmp_path_factory.mktemp("server"))
        server.start()
        try:
            yield server
        finally:
            server.kill()


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Destination:
    """An MLflow store: a SQLite file, and a server on PostgreSQL."""
    if request.param == "postgresql":
        server: MlflowServer = request.getfixturevalue("mlflow_server")
        return Destination(uri=server.uri, experiment="tests", artifact_location=None)
    root = tmp_path_factory.mktemp("mlflow")
    location = (root / "artifacts").as_uri()
    return Destination(uri=f"sqlite:///{root / 'mlflow.db'}", experiment="tests", artifact_location=location)
