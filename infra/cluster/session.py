"""Starts a local Ray or joins a cluster, and leaves it as it was found."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra.cluster.config import ClusterConfig
from infra.cluster.environment import apply, run_environment
from infra.errors import InfrastructureError

MIB = 1024 * 1024


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
def ray_session(config: ClusterConfig) -> Iterator[Mapping[str, float]]:
    """A Ray connection; yields the cluster's resources. Joins the one this process already has, if any.

    Raises:
        InfrastructureError: the cluster cannot be reached or the local Ray does not start.
    """
    environment = run_environment(gpus=config.num_gpus_per_worker > 0)
    apply(environment)
    import ray

    if ray.is_initialized():
        yield ray.cluster_resources()
        return
    project = Path(__file__).resolve().parents[2]
    runtime_env = {"env_vars": {**environment, "PYTHONPATH": _python_path(project)}}
    try:
        if config.address:
            ray.init(address=config.address, runtime_env=runtime_env, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                num_cpus=int(available_cpus(config)),
                object_store_memory=config.object_store_memory_mib * MIB,
                include_dashboard=False,
                runtime_env=runtime_env,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = config.address or "a local Ray"
        raise InfrastructureError(f"cluster.address: {where} does not start or answer: {error}") from error
    try:
        yield ray.cluster_resources()
    finally:
        ray.shutdown()


def _python_path(project: Path) -> str:
    """So that workers on this machine import the same sources as the driver."""
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.pathsep.join(dict.fromkeys([str(project), *rest, *(p for p in sys.path if p.endswith("site-packages"))]))
