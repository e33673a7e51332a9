"""The ranks of a benchmark as processes on gloo, without Ray: one thread each, a file for the rendezvous."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.pretraining.config import PretrainConfig
    from components.pretraining.training import TrainingJob
    from infra.tracking.client import Sink

PROJECT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300


def run(module: str, arguments: Sequence[str], num_ranks: int, store: Path) -> None:
    """Runs `python -m module arguments` as `num_ranks` ranks, to their end.

    Raises:
        RuntimeError: one did not end well.
    """
    base = {**os.environ, "WORLD_SIZE": str(num_ranks), "STORE": str(store), "PYTHONPATH": str(PROJECT)}
    base |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
    processes = [
        subprocess.Popen(command, cwd=PROJECT, env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(num_ranks)
    ]
    try:
        codes = [process.wait(TIMEOUT_SECONDS) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise RuntimeError(f"{module}: {num_ranks} ranks ended with {codes}")


@contextmanager
def joined() -> Iterator[tuple[int, int]]:
    """In a rank: its number and how many there are, in a process group."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(os.environ["STORE"], num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    yield rank, num_ranks
    dist.barrier()
    dist.destroy_process_group()


def training_job(config: PretrainConfig, data: Path, work: Path, sink: Sink, name: str = "pretrain") -> TrainingJob:
    """A training on the shards in `data`, whose points go to `sink`."""
    from components.pretraining.training import TrainingJob
    from infra.tracking.client import StepTracker

    work.mkdir(parents=True, exist_ok=True)
    return TrainingJob(
        config=config,
        shards=data / "token_shards",
        tokenizer=data / "tokenizer",
        work=work,
        key="0" * 32,
        name=name,
        tracker=StepTracker(step=name, sink=sink),
    )
