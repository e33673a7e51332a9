"""What the cluster is and how much of it a run takes. Nothing here can change a key."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from infra.journal.config import FrozenConfig, execution_field

NumWorkers = Annotated[int, Field(ge=1, le=4096)]


class ClusterConfig(FrozenConfig):
    """The Ray cluster and the workers of a training."""

    address: str | None = execution_field(None, description="Ray cluster to join; without it a local Ray starts")
    num_workers: NumWorkers | tuple[NumWorkers, NumWorkers] = execution_field(
        2, description="training workers (ranks); or [fewest, most]: as many as the cluster has room for, at any time"
    )
    resize_check_seconds: float = execution_field(
        60.0, gt=0, description="how often a training with [fewest, most] workers looks whether the cluster has changed"
    )
    max_restarts: int = execution_field(
        2, ge=0, description="how often a training starts its workers again after one failed; preemptions do not count"
    )
    threads_per_worker: int = execution_field(1, ge=1, le=256, description="CPU threads of each worker")
    num_gpus_per_worker: float = execution_field(0, ge=0, description="GPUs of each worker")
    num_cpus: int | None = execution_field(
        None, ge=1, description="CPUs a local Ray may take; without it, this machine's"
    )
    object_store_memory_mib: int = execution_field(512, ge=80, description="object store of a local Ray, MiB")
    memory_gib_per_worker: float | None = execution_field(
        None,
        gt=0,
        description="memory of a worker, GiB: of its GPU where it has one, else its part of its machine's; without it, "
        "what the machines tell",
    )
    peak_tflops_per_worker: float | None = execution_field(
        None,
        gt=0,
        description="matrix products that a worker can do at most in the training's precision, 10^12 FLOPs a second; "
        "for the plan alone",
    )
    expected_mfu: float = execution_field(
        0.4, gt=0, le=1, description="part of that peak that a training is expected to reach; for the plan alone"
    )
    network_gbit_per_second: float | None = execution_field(
        None, gt=0, description="what a worker can send to the others, 10^9 bits a second; for the plan alone"
    )

    @model_validator(mode="after")
    def _in_order(self) -> ClusterConfig:
        if self.min_workers > self.max_workers:
            raise ValueError(f"num_workers={list(self._pair)}: the first must not exceed the second")
        return self

    @property
    def _pair(self) -> tuple[int, int]:
        return self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)

    @property
    def min_workers(self) -> int:
        """The fewest workers that a training runs with."""
        return self._pair[0]

    @property
    def max_workers(self) -> int:
        """The most workers that a training runs with."""
        return self._pair[1]

    @property
    def is_elastic(self) -> bool:
        """Whether a training follows the cluster."""
        return self.min_workers < self.max_workers
