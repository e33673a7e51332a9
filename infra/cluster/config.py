"""What the cluster is and how much of it a run takes. Nothing here can change a key."""

from __future__ import annotations

from infra.journal.config import FrozenConfig, execution_field


class ClusterConfig(FrozenConfig):
    """The Ray cluster and the workers of a training."""

    address: str | None = execution_field(None, description="Ray cluster to join; without it a local Ray starts")
    num_workers: int = execution_field(2, ge=1, le=4096, description="training workers (ranks)")
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
