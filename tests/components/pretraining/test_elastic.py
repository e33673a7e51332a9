"""A training on a real cluster of several raylets follows it: nodes come, are told to go, and die."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.clusters import Cluster, ray_cluster_of_three, start

pytestmark = [pytest.mark.slow, pytest.mark.faults]
PROJECT = Path(__file__).parents[3]
CONFIG: dict[str, Any] = {
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "steps": 200,
    "learning_rate": 0.001,
    "sequence_length": 32,
    "global_batch_size": 8,
    "precision": "fp32",
    "log_every_steps": 1,
    "max_validation_sequences": 20,
    "checkpoint_every_steps": 10,
}
TIMEOUT_SECONDS = 240


@dataclass(frozen=True)
class Driver:
    """One training and its driver."""

    process: subprocess.Popen[str]
    work: Path

    def attempts(self) -> list[tuple[int, int]]:
        """(workers, step that they went on from) of each start."""
        path = self.work / "attempts.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(workers), int(step)) for workers, step in (line.split() for line in lines)]

    def steps(self) -> list[int]:
        """Every step that was told, those that were made twice included."""
        path = self.work / "steps.log"
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def until(self, what: Callable[[], Any]) -> None:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not what():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, (self.attempts(), self.steps()[-3:])
            time.sleep(0.05)

    def end(self) -> None:
        (self.work / "fast").touch()
        _, said = self.process.communicate(timeout=TIMEOUT_SECONDS)
        assert self.process.returncode == 0, said


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster_of_three({"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "20"}, nodes=(2,)) as one:
        yield one


@pytest.fixture
def train(cluster: Cluster, tiny_data: Path, tmp_path: Path) -> Iterator[Callable[[Any], Driver]]:
    started: list[subprocess.Popen[str]] = []

    def begin(num_workers: Any) -> Driver:
        settings = {"address": cluster.address, "num_workers": num_workers, "resize_check_seconds": 1.0}
        told = json.dumps({**CONFIG, "cluster": settings})
        script = str(Path(__file__).with_name("elastic_driver.py"))
        started.append(start(cluster, script, str(tiny_data), str(tmp_path), told, project=PROJECT))
        return Driver(started[-1], tmp_path)

    yield begin
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def undisturbed(
    tiny_data: Path, tmp_path_factory: pytest.TempPathFactory, run_trainings: Any
) -> list[Mapping[str, float]]:
    """The history of the same training by one process without Ray."""
    work = tmp_path_factory.mktemp("undisturbed")
    run_trainings.run(tiny_data, {work: CONFIG}, 1)
    return list(run_trainings.history(work))


def check(found: list[Mapping[str, float]], undisturbed: list[Mapping[str, float]]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in undisturbed]
    assert [row.get("sample_hash") for row in found] == [row.get("sample_hash") for row in undisturbed]
    losses = [[row["train_loss"] for row in rows if "train_loss" in row] for rows in (found, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert found[-1]["validation_loss"] == pytest.approx(undisturbed[-1]["validation_loss"], rel=1e-3)


def node_of(cluster: Cluster, worker: psutil.Process) -> psutil.Process:
    """`ray start --block` of the node that a process runs on."""
    return next(node for node in cluster.nodes if node.is_running() and worker in node.children(recursive=True))


def test_the_training_follows_nodes_that_come_and_die(
    cluster: Cluster,
    train: Callable[[Any], Driver],
    undisturbed: list[Mapping[str, float]],
    run_trainings: Any,
) -> None:
    driver = train([1, 2])
    driver.until(lambda: len(driver.steps()) > 3)
    cluster.start_node(3)
    driver.until(lambda: len(driver.attempts()) == 2)
    assert driver.attempts()[0] == (1, 0) and driver.attempts()[1][0] == 2
    begun = driver.attempts()[1][1]
    assert begun > 3 and driver.steps()[:begun] == list(range(1, begun + 1))  # it saved before it was resized
    driver.until(lambda: driver.steps()[-1] > begun + 12)
    assert len(driver.steps()) == len(set(driver.steps()))
    raylet = next(one for one in cluster.nodes[-1].children(recursive=True) if "raylet" in one.name())
    raylet.send_signal(signal.SIGKILL)
    killed_at = driver.steps()[-1]
    driver.until(lambda: len(driver.attempts()) == 3)
    workers, step = driver.attempts()[2]
    assert workers == 1 and step >= killed_at - 2 * CONFIG["checkpoint_every_steps"]
    driver.end()
    check(run_trainings.history(driver.work), undisturbed)


@pytest.mark.faults
def test_sigterm_to_a_worker_loses_no_step_and_the_training_goes_on(
    cluster: Cluster, train: Callable[[Any], Driver], undisturbed: list[Mapping[str, float]], run_trainings: Any
) -> None:
    driver = train(1)
    driver.until(lambda: len(driver.steps()) > 3)
    (worker,) = cluster.processes("RayTrainWorker")
    worker.terminate()
    driver.until(lambda: len(driver.attempts()) == 2)
    driver.end()
    assert driver.steps() == list(range(1, CONFIG["steps"] + 1))
    assert run_trainings.history(driver.work) == undisturbed  # at the same number of workers: to the bit


@pytest.mark.faults
def test_a_node_that_is_told_to_go_costs_no_step(
    cluster: Cluster, train: Callable[[Any], Driver], undisturbed: list[Mapping[str, float]], run_trainings: Any
) -> None:
    driver = train(1)
    driver.until(lambda: len(driver.steps()) > 3)
    (worker,) = cluster.processes("RayTrainWorker")
    leaving = node_of(cluster, worker)
    cluster.start_node(4)
    leaving.terminate()
    driver.until(lambda: len(driver.attempts()) == 2)
    driver.end()
    assert driver.steps() == list(range(1, CONFIG["steps"] + 1))
    assert run_trainings.history(driver.work) == undisturbed
