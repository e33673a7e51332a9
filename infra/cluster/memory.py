"""The memory that a worker of a training has, as far as it can be known before Ray starts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from infra.cluster.config import ClusterConfig

GIB = 1 << 30
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Of a container, version 2 and 1."""


def machine_memory_bytes() -> int:
    """Memory of this machine, or of the container that this process is in."""
    found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            found = min(found, int(Path(path).read_text(encoding="ascii")))
    return found


def worker_memory_bytes(cluster: ClusterConfig) -> float | None:
    """Memory of a worker by the config, else this machine's divided by its workers after the object store's part; None
    where only the workers can tell: on GPUs, and on a cluster that is not joined."""
    if cluster.memory_gib_per_worker is not None:
        return cluster.memory_gib_per_worker * GIB
    if cluster.address is not None or cluster.num_gpus_per_worker:
        return None
    store = cluster.object_store_memory_mib << 20
    return max(0, machine_memory_bytes() - store) / cluster.max_workers
