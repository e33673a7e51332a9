"""What a checkpoint costs the training: how long it stops for one, and how much slower it is while one is written.

    python -m tests.benchmarks.checkpoint_stall [--hidden 384] [--layers 8] [--every 20] [--saves 4] [--stage 1]

Two ranks of one thread on gloo, without Ray, in bf16. In turn: each checkpoint waited for, as it was before there was a
thread; then written in the background. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.components.pretraining.data import make_shards

NUM_RANKS = 2
MIB = 1024 * 1024
PROJECT = Path(__file__).resolve().parents[2]


def rank_main(told: dict[str, Any]) -> None:
    """One rank: trains, saves, and on rank 0 prints what it measured as JSON."""
    import torch
    import torch.distributed as dist

    from components.pretraining import loop
    from components.pretraining.config import PretrainConfig
    from components.pretraining.notice import Notice
    from components.pretraining.optimizer_step import take_step
    from components.pretraining.training import TrainingJob
    from infra.tracking.client import StepTracker

    torch.set_num_threads(1)
    rank, home = int(os.environ["RANK"]), Path(told["home"])
    store = dist.FileStore(told["store"], NUM_RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=NUM_RANKS)
    data = home / "data"
    job = TrainingJob(
        config=PretrainConfig.model_validate(told["config"]),
        shards=data / "token_shards",
        tokenizer=data / "tokenizer",
        work=Path(told["work"]),
        key="k" * 32,
        name="pretrain_clm",
        tracker=StepTracker(step="pretrain_clm"),
    )
    training = loop._start(job, Notice())
    writer, every = training.writer, told["every"]
    apart: list[float] = []
    beside: list[float] = []
    stalls: list[float] = []
    for step in range(every * (told["saves"] + 1)):
        writing = writer._thread is not None and writer._thread.is_alive()
        started = time.monotonic()
        take_step(training)
        if step >= 3:  # the first ones warm up
            (beside if writing else apart).append(time.monotonic() - started)
        if (step + 1) % every == 0 and step + 1 < every * (told["saves"] + 1):
            before = writer.stall_seconds
            loop._save(training)
            if told["waits"]:
                writer.wait()
            stalls.append(writer.stall_seconds - before)
    writer.wait()
    newest = sorted(job.work.glob("checkpoints/step_*"))[-1]
    if rank == 0:
        num_bytes = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        parameters = sum(parameter.numel() for parameter in training.module.parameters())
        writes = writer.write_seconds / told["saves"]
        found = {"apart": apart, "beside": beside, "stalls": stalls, "write_seconds": writes}
        print(json.dumps(found | {"num_bytes": num_bytes, "parameters": parameters}))
    dist.barrier()
    dist.destroy_process_group()


def measure(home: Path, name: str, waits: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs both ranks; what rank 0 measured."""
    config = {
        "objective": "causal_lm",
        "model": {
            "hidden_size": arguments.hidden,
            "num_layers": arguments.layers,
            "num_heads": max(1, arguments.hidden // 64),
        },
        "steps": 10_000,
        "sequence_length": 256,
        "global_batch_size": 16,
        "micro_batch_size_per_rank": 8,
        "zero_stage": arguments.stage,
        "cluster": {"num_workers": NUM_RANKS},
    }
    told = {
        "home": str(home),
        "store": str(home / f"store-{name}"),
        "work": str(home / name),
        "config": config,
        "every": arguments.every,
        "saves": arguments.saves,
        "waits": waits,
    }
    (home / name).mkdir()
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(NUM_RANKS)}
    environment |= {"PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.checkpoint_stall", "--rank", json.dumps(told)]
    ranks = [
        subprocess.Popen(
            command, env=environment | {"RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in map(str, range(NUM_RANKS))
    ]
    outputs = [process.communicate()[0] for process in ranks]
    if any(process.returncode for process in ranks):
        raise SystemExit("a rank failed")
    return dict(json.loads(outputs[0].splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--saves", type=int, default=4)
    parser.add_argument("--stage", type=int, default=1)
    parser.add_argument("--rank", help="of the benchmark itself")
    arguments = parser.parse_args()
    if arguments.rank:
        rank_main(json.loads(arguments.rank))
        return
    console = Console(width=120)
    table = Table("checkpoint", "stall, s", "of the interval", "step, s", "step beside writing, s", "writing, s")
    with tempfile.TemporaryDirectory(prefix="stall") as name:
        home = Path(name)
        make_shards(home / "data", num_documents=20_000, sequence_length=256, vocab_size=4096)
        for label, waits in (("waited for", True), ("in the background", False)):
            found = measure(home, label.replace(" ", "-"), waits, arguments)
            step, stall = statistics.median(found["apart"]), statistics.median(found["stalls"])
            beside = statistics.median(found["beside"]) if found["beside"] else step
            share = stall / (stall + arguments.every * step)
            cells = (f"{stall:.3f}", f"{share:.2%}", f"{step:.3f}", f"{beside:.3f}", f"{found['write_seconds']:.2f}")
            table.add_row(label, *cells)
    console.print(
        f"{found['parameters']:,} weights, a checkpoint of {found['num_bytes'] / MIB:,.0f} MiB every "
        f"{arguments.every} steps, load {os.getloadavg()[0]:.1f}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
