"""Starts a local Ray or joins a cluster, and leaves it as it was found."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.cluster.config import ClusterConfig
from infra.cluster.environment import apply, run_environment, variables
from infra.cluster.watch import RayWatch
from infra.errors import InfrastructureError

MIB = 1024 * 1024
SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A Ray that this process is connected to."""

    resources: Mapping[str, float]
    """What it has: `CPU`, `GPU`."""
    watch: RayWatch

    def check(self) -> None:
        """Raises ClusterLostError if Ray is gone."""
        self.watch.check()


def available_cpus(config: ClusterConfig) -> float:
    """CPUs that a local Ray would offer: those asked for, else this machine's, but two at the least, so that two
    workers start on a machine of one core too."""
    return float(config.num_cpus or max(2, os.cpu_count() or 1))


def available_gpus() -> float:
    """NVIDIA GPUs that a local Ray would find: those that are visible, else the device files."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return float(len([one for one in visible.split(",") if one.strip() and one.strip() != "-1"]))
    return float(len(list(Path("/dev").glob("nvidia[0-9]*"))))


@contextlib.contextmanager
def ray_session(config: ClusterConfig) -> Iterator[Cluster]:
    """A Ray connection. Joins the one this process already has, if any.

    Raises:
        InfrastructureError: the cluster cannot be reached or the local Ray does not start.
        KeyboardInterrupt: in the block, at any time: Ray died; `Cluster.check` makes an error of it.
    """
    environment = run_environment(gpus=config.num_gpus_per_worker > 0)
    apply(environment)
    import ray

    worker = ray._private.worker
    if ray.is_initialized():
        yield Cluster(resources=ray.cluster_resources(), watch=RayWatch(None, worker.global_worker.gcs_client))
        return
    project = Path(__file__).resolve().parents[2]
    path = {"PYTHONPATH": _python_path(project)}
    local = path | {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # a process that watches nodes for a notice to leave
    try:
        if config.address:
            runtime_env = {"env_vars": environment | path}
            ray.init(address=config.address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
        else:
            # What a local Ray starts has this process's variables. With a runtime_env each of its processes would
            # start twice (a second of CPU), and none of those that Ray starts in advance would fit.
            with variables(local):
                ray.init(
                    address="local",  # not the cluster that RAY_ADDRESS or a `ray start` on this machine leads to
                    num_cpus=int(available_cpus(config)),
                    object_store_memory=config.object_store_memory_mib * MIB,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = config.address or "a local Ray"
        raise InfrastructureError(f"cluster.address: {where} does not start or answer: {error}") from error
    worker._worker_logs_enabled = False  # what Ray has to say of its end goes to standard output (2.60)
    node = None if config.address else worker._global_node
    watch = RayWatch(node, worker.global_worker.gcs_client)
    try:
        with watch:
            yield Cluster(resources=ray.cluster_resources(), watch=watch)
    finally:
        _abandon(node) if watch.lost else ray.shutdown()


def _abandon(node: Any) -> None:
    """Leaves a Ray that is gone: a clean shutdown would wait for what does not answer any more."""
    import psutil
    import ray

    if node:
        started = [psutil.Process(process.pid) for _, process in node.live_processes()]
        below = [child for process in started for child in process.children(recursive=True)]
        node.kill_all_processes(check_alive=False)
        for process in below:  # agents of a raylet that is gone try for a minute to tell the head
            with contextlib.suppress(psutil.Error):
                process.kill()
    atexit.unregister(ray.shutdown)
    leaving = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    leaving.start()
    leaving.join(SHUTDOWN_SECONDS)


def _python_path(project: Path) -> str:
    """So that workers on this machine import the same sources as the driver."""
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([str(project), *rest, *(p for p in sys.path if p.endswith("site-packages"))]))
