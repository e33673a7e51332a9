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
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.ranks import joined, run, training_job
from tests.components.pretraining.data import make_shards

NUM_RANKS = 2
MIB = 1024 * 1024


def rank_main(told: dict[str, Any]) -> None:
    """One rank: trains and saves; rank 0 writes what it measured."""
    from components.pretraining import loop
    from components.pretraining.config import PretrainConfig
    from components.pretraining.health.watchdog import Watchdog
    from components.pretraining.notice import Notice
    from components.pretraining.optimizer_step import take_step
    from infra.tracking.client import NullSink

    config, home, every = PretrainConfig.model_validate(told["config"]), Path(told["home"]), told["every"]
    job = training_job(config, home / "data", Path(told["work"]), NullSink())
    apart: list[float] = []
    beside: list[float] = []
    stalls: list[float] = []
    with joined() as (rank, _), Watchdog(config.health.hang_timeout_seconds, print) as watchdog:
        training = loop._start(job, Notice(), watchdog)
        writer = training.writer
        for step in range(every * (told["saves"] + 1)):
            watchdog.begin(step + 1)
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
            Path(told["result"]).write_text(json.dumps(found | {"num_bytes": num_bytes, "parameters": parameters}))


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
        "work": str(home / name),
        "result": str(home / f"{name}.json"),
        "config": config,
        "every": arguments.every,
        "saves": arguments.saves,
        "waits": waits,
    }
    run("tests.benchmarks.checkpoint_stall", ["--rank", json.dumps(told)], NUM_RANKS, home / f"store-{name}")
    return dict(json.loads(Path(told["result"]).read_text()))


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
