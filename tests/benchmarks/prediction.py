"""Seconds of trainings, predicted from 20 steps of one of them, against those that they take.

    python -m tests.benchmarks.prediction [--ranks 1] [--steps 30]

The arithmetic is that of `plan` (`components.pretraining.scaling.step_seconds`). What it needs of the machine is from
two small measurements that run no training (the rate of large matrix products, that of memory) and from 20 steps of one
training, whose measured time gives the MFU; the other trainings differ from it in width, depth, batch, length,
objective or number of steps. Real trainings: data, sampler, engine, tracker, without Ray.

Measured is the median step times the number of steps, because other work on the machine lengthens single steps.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.pretraining.config import PretrainConfig

PROJECT = Path(__file__).resolve().parents[2]
VOCAB = 2048
CALIBRATION_STEPS = 20
BOUND = 0.20
TIMEOUT_SECONDS = 280
BASE: dict[str, Any] = {
    "objective": "causal_lm",
    "model": {"hidden_size": 256, "num_layers": 4, "num_heads": 4},
    "global_batch_size": 16,
    "micro_batch_size_per_rank": 8,
    "sequence_length": 128,
    "log_every_steps": 1,
    "checkpoint_every_steps": None,
    "max_validation_sequences": 4,
    "num_samples": 0,
}
OTHERS: dict[str, dict[str, Any]] = {
    "wider": {"model": {"hidden_size": 512, "num_layers": 4, "num_heads": 8}},
    "narrower": {"model": {"hidden_size": 128, "num_layers": 4, "num_heads": 2}},
    "deeper": {"model": {"hidden_size": 256, "num_layers": 8, "num_heads": 4}},
    "larger batch": {"global_batch_size": 32},
    "smaller micro batch": {"micro_batch_size_per_rank": 4},
    "longer": {"sequence_length": 256, "global_batch_size": 8, "micro_batch_size_per_rank": 4},
    "shorter": {"sequence_length": 64, "global_batch_size": 32, "micro_batch_size_per_rank": 16},
    "masked LM": {"objective": "masked_lm"},
    "twice the steps": {},
}


class TimingSink:
    """Keeps when the training told of each step."""

    def __init__(self) -> None:
        self.times: dict[int, tuple[float, float]] = {}

    def send(self, kind: str, step: str, payload: Mapping[str, Any]) -> None:
        """The first message of a step counts: it comes before validation."""
        if kind == "metrics":
            self.times.setdefault(int(payload["step"]), (time.perf_counter(), time.process_time()))


def work(path: Path) -> None:
    """One rank: each training in turn; rank 0 writes the seconds of its steps."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import FileStore

    from components.pretraining.loop import train
    from components.pretraining.training import TrainingJob
    from infra.tracking.client import StepTracker

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=FileStore(os.environ["STORE"], ranks), rank=rank, world_size=ranks)
    found = {}
    for name, told in json.loads(path.read_text()).items():
        sink, data = TimingSink(), Path(told["data"])
        job = TrainingJob(
            config=PretrainConfig.model_validate(told["config"]),
            shards=data / "token_shards",
            tokenizer=data / "tokenizer",
            work=Path(told["work"]),
            key="k" * 32,
            name=name,
            tracker=StepTracker(step=name, sink=sink),
        )
        job.work.mkdir(parents=True, exist_ok=True)
        train(job)
        times = [sink.times[step] for step in sorted(sink.times)]
        found[name] = [
            [after - before for before, after in zip(*pair, strict=True)] for pair in itertools.pairwise(times)
        ]
    if rank == 0:
        path.with_name("seconds.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def measure(configs: Mapping[str, PretrainConfig], folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of each step but the first, by training."""
    path = Path(__file__).parents[1] / "components" / "pretraining" / "data.py"
    spec = importlib.util.spec_from_file_location("prediction_data", path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(data)
    jobs = {}
    for name, config in configs.items():
        shards = folder / f"data-{config.sequence_length}"
        if not shards.exists():
            data.make_shards(shards, num_documents=6000, sequence_length=config.sequence_length, vocab_size=VOCAB)
        jobs[name] = {"data": str(shards), "work": str(folder / name), "config": config.model_dump(mode="json")}
    told = folder / "jobs.json"
    told.write_text(json.dumps(jobs))
    ranks = next(iter(configs.values())).cluster.num_workers
    base = {**os.environ, "WORLD_SIZE": str(ranks), "STORE": f"{folder}/store", "PYTHONPATH": str(PROJECT)}
    base |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.prediction", "--worker", str(told)]
    running = [
        subprocess.Popen(
            command, cwd=PROJECT, env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL
        )
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait(TIMEOUT_SECONDS) for process in running]
    finally:
        for process in running:
            process.kill()
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")
    found: dict[str, list[tuple[float, float]]] = json.loads((folder / "seconds.json").read_text())
    return found


def main() -> None:
    """Prints the table; exits with 1 if a prediction is off by more than 20 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)


if __name__ == "__main__":
    main()
