"""The ranks of a benchmark as processes on gloo, without Ray: one thread each, a file for the rendezvous."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.cluster.environment import run_environment

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


class Processes:
    """The ranks of sides that take turns (`speed_sides.py`), without Ray."""

    def __init__(self) -> None:
        self._started: list[tuple[str, Path, subprocess.Popen[bytes]]] = []

    def start(self, work: Path, num_ranks: int, num_threads: int, told: Mapping[str, Any], port: int) -> None:
        """Starts the ranks of a side.

        Args:
            work: its folder.
            num_ranks: how many.
            num_threads: of each.
            told: what the side is told beside its folder.
            port: of their rendezvous.
        """
        work.mkdir(parents=True, exist_ok=True)
        path = work / "side.json"
        path.write_text(json.dumps({**told, "work": str(work)}), encoding="utf-8")
        for rank in range(num_ranks):
            environment = {**os.environ, **run_environment(), "OMP_NUM_THREADS": str(num_threads)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(num_ranks)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            log = work / f"rank{rank}.log"
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.benchmarks.speed_sides", str(path)],
                    cwd=PROJECT,
                    env=environment,
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                )
            self._started.append((told["name"], log, process))

    def check(self) -> None:
        """Raises if one has ended."""
        for name, log, process in self._started:
            if process.poll() is not None:
                raise RuntimeError(f"{name} has ended: {log}\n{log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """Ends them all."""
        for _, _, process in self._started:
            process.kill()
        for _, _, process in self._started:
            process.wait()


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
