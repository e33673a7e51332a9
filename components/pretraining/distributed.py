"""The training loop on Ray Train: one worker a rank, each with a DeepSpeed engine.

Nothing is handed back through Ray: `ray.train.report` is taken once a controller poll, keeps metrics only beside
checkpoints, and loses what was uploaded but not polled (Ray 2.60). Checkpoints and results are files in the work
folder, points go to the tracker, and a worker group that Ray starts again goes on from the newest checkpoint there.
An error that is the user's is written down and raised here. Where all ranks have one they end in peace, so that Ray
does not try it again; where only some have, these fail, so that Ray ends the others, and a group that is started after
that ends at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

from components.pretraining.config import PretrainConfig
from components.pretraining.engine.hardware import hardware
from components.pretraining.health.failures import (
    FAILURE_NAME,
    SHARED_SECONDS,
    all_come,
    forget_old_copies,
    is_there,
    read_failure,
    read_hang,
    unwrapped,
    write_failure,
)
from components.pretraining.notice import Notice
from infra.cluster.config import ClusterConfig
from infra.cluster.memory import GIB
from infra.errors import DiskFullError, Fault, FromzeroError, InfrastructureError
from infra.journal.step import STOP_NAME

logger = logging.getLogger(__name__)

MAX_LEAVES = 100
"""How often the workers may be told to leave, and the training goes on with new ones."""
LEAVE_SECONDS = 30.0
"""What a training is given to save before Ray starts it again with more or fewer workers."""
TIMEOUT_SECONDS = 1800
"""How long a rank waits for the others in a collective."""


def run_distributed(job: Any, run_name: str) -> None:
    """Trains with `cluster.num_workers` Ray Train workers; returns when `export/` is in the work folder.

    Args:
        job: a `training.TrainingJob`.
        run_name: for people; a word is added to it, because Ray resumes a run whose name it has seen.

    Raises:
        FromzeroError: what a worker raised, itself for a bug, or InfrastructureError for what was no error of ours.
    """
    forget_old_copies(job)
    for name in (FAILURE_NAME, STOP_NAME):
        (job.work / name).unlink(missing_ok=True)
        job.mirror.drop(job.work / name)
    for _ in range(MAX_LEAVES):
        if _fit(job, run_name):
            return
        if is_there(job, STOP_NAME):
            raise InfrastructureError(f"{job.name} was stopped; it has saved where it stands, run again to go on")
        logger.warning(
            "%s: a worker was told to leave; all have saved, and the training goes on with new ones", run_name
        )
    raise InfrastructureError(f"{job.name}: its workers were told to leave {MAX_LEAVES} times; run again to go on")


def _fit(job: Any, run_name: str) -> bool:
    """Trains with one group of workers after another, as Ray starts them again; whether it came to the end, or the
    workers left because they were told to."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    cluster = job.config.cluster
    gpus = cluster.num_gpus_per_worker
    resources = {"CPU": float(cluster.threads_per_worker)} | ({"GPU": gpus} if gpus else {})
    trainer = TorchTrainer(
        train_on_worker,
        train_loop_config={"job": job},
        torch_config=_torch_config(
            hardware(cluster).backend, int(max(TIMEOUT_SECONDS, 2 * job.config.health.hang_timeout_seconds))
        ),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers if cluster.is_elastic else cluster.max_workers,
            elastic_resize_monitor_interval_s=cluster.resize_check_seconds,
            use_gpu=gpus > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            name=f"{run_name}-{secrets.token_hex(4)}",
            storage_path=job.mirror.uri((job.work / "ray").resolve()),
            failure_config=FailureConfig(max_failures=cluster.max_restarts),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    try:
        result = trainer.fit()
    except TrainingFailedError as error:
        if is_there(job, FAILURE_NAME):
            raise read_failure(job.work / FAILURE_NAME) from error
        raise unwrapped(error, cluster.max_restarts, read_hang(job)) from error
    if is_there(job, FAILURE_NAME):
        raise read_failure(job.work / FAILURE_NAME)
    return result.return_value is not False


def worker_memory(cluster: ClusterConfig) -> float:
    """Memory of the worker that has least, bytes: by the config, else its GPU's, else its part of its node's.

    A node is taken to hold as many workers as its CPUs allow; what Ray calls its memory leaves the object store out.
    """
    if cluster.memory_gib_per_worker is not None:
        return cluster.memory_gib_per_worker * GIB
    import ray

    if cluster.num_gpus_per_worker:
        ask = ray.remote(_gpu_memory_bytes).options(num_gpus=cluster.num_gpus_per_worker)
        return float(ray.get(ask.remote())) * min(1.0, cluster.num_gpus_per_worker)
    found = []
    for node in ray.nodes():
        fitting = int(node["Resources"].get("CPU", 0) // cluster.threads_per_worker) if node["Alive"] else 0
        if fitting:
            found.append(node["Resources"]["memory"] / min(fitting, cluster.max_workers))
    if not found:
        raise InfrastructureError(f"no node has the {cluster.threads_per_worker} CPUs of a training worker")
    return float(min(found))


def _gpu_memory_bytes() -> int:
    """In a worker with a GPU."""
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory)


def _torch_config(backend: str, timeout_seconds: int) -> Any:
    """Ray's, whose workers heed SIGTERM, and save before Ray takes them away for another number of workers."""
    from ray.train.torch import TorchConfig
    from ray.train.torch.config import _TorchBackend

    class NoticeBackend(_TorchBackend):  # type: ignore[misc]
        """Its functions run in the main thread of each worker, beside the training's."""

        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(_install_notice)
            super().on_start(worker_group, backend_config)

        def on_shutdown(self, worker_group: Any, backend_config: Any) -> None:
            _end_in_order(worker_group)
            super().on_shutdown(worker_group, backend_config)

    class NoticeConfig(TorchConfig):  # type: ignore[misc]
        """Names the backend."""

        @property
        def backend_cls(self) -> Any:
            return NoticeBackend

    return NoticeConfig(backend=backend, timeout_s=timeout_seconds)


def _install_notice() -> None:
    """In the place of Ray's handler, which ends the process at once (2.60)."""
    Notice().install()


def _tell_to_leave() -> bool:
    notice = Notice.installed()
    notice()
    return notice.training_ended.is_set()


def _has_ended() -> bool:
    return Notice.installed().training_ended.is_set()


def _end_in_order(worker_group: Any) -> None:
    """Before workers go: those of a training that runs save. Where one has ended or died the others cannot."""
    from ray.exceptions import RayError

    deadline = time.monotonic() + LEAVE_SECONDS
    try:
        ended = worker_group.execute(_tell_to_leave)
        if any(ended):
            return
        while not all(ended) and time.monotonic() < deadline:
            time.sleep(0.1)
            ended = worker_group.execute(_has_ended)
    except RayError as error:
        logger.info("a worker is gone, so nothing can be saved: %s", error)


def train_on_worker(settings: Mapping[str, Any]) -> bool:
    """What each Ray Train worker runs; False if it left before the end."""
    job = settings["job"]
    config: PretrainConfig = job.config
    if not config.cluster.num_gpus_per_worker:
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = str(config.cluster.threads_per_worker)
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    from components.pretraining.health.agreement import from_rank_0
    from components.pretraining.loop import train

    torch.set_num_threads(config.cluster.threads_per_worker)
    notice = Notice.installed()
    forget_old_copies(job)
    if from_rank_0(is_there(job, FAILURE_NAME)):
        notice.training_ended.set()
        return True
    questions = [_is_draining, lambda: _is_stopped(job)]
    notice.ask(*(questions if dist.get_rank() == 0 else questions[:1]))
    try:
        return train(job, notice)
    except FromzeroError as error:
        if error.fault is not Fault.USER and not isinstance(error, DiskFullError):
            raise
        if not is_there(job, FAILURE_NAME):
            write_failure(job.work / FAILURE_NAME, error)
            job.mirror.push(job.work / FAILURE_NAME)
        if not all_come(_get_default_store(), dist.get_world_size(), SHARED_SECONDS):
            raise
        return True
    finally:
        notice.training_ended.set()


def _is_draining() -> bool:
    """Whether a node of this training is about to go: Ray tells its workers. The public function for it,
    `ray.train.get_preemption_info`, is a barrier (2.60)."""
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None


def _is_stopped(job: Any) -> bool:
    """Whether the run is being stopped."""
    with contextlib.suppress(FromzeroError, OSError):  # storage that is away for a moment
        return is_there(job, STOP_NAME)
    return False
