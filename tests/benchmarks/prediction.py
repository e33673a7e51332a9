"""Seconds of trainings, predicted from 20 steps, against those that they take.

    python -m tests.benchmarks.prediction [--steps 12]

The arithmetic is that of `plan` (`estimates.scaling.step_seconds`): FLOPs at an MFU, and a fixed time for each layer of
a micro batch. Twenty steps, ten each of a training and of one half as wide, give both; the others differ in width,
depth, batch, length, objective or number of steps. Real trainings: data, sampler, engine, tracker, without Ray, one
rank of one thread. The last column is what the MFU of the first ten steps alone would predict.

Measured is the lower quartile of the steps' CPU seconds times their number: on an idle machine that is the time that
passes, on a busy one it is what would pass if it were idle. Wall time (the median step) stands beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.pretraining.config import PretrainConfig
from components.pretraining.estimates.scaling import step_flops, step_seconds
from tests.benchmarks.ranks import joined, run, training_job
from tests.components.pretraining.data import make_shards

VOCAB = 2048
CALIBRATION_STEPS = 20
BOUND = 0.20
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
    "cluster": {"num_workers": 1},
}
CALIBRATION: dict[str, dict[str, Any]] = {
    "width 256": {},
    "width 128": {"model": {"hidden_size": 128, "num_layers": 4, "num_heads": 2}},
}
OTHERS: dict[str, dict[str, Any]] = {
    "wider": {"model": {"hidden_size": 512, "num_layers": 4, "num_heads": 8}},
    "three times the width, half the depth": {"model": {"hidden_size": 768, "num_layers": 2, "num_heads": 12}},
    "deeper": {"model": {"hidden_size": 256, "num_layers": 8, "num_heads": 4}},
    "larger batch": {"global_batch_size": 32},
    "smaller micro batch": {"micro_batch_size_per_rank": 4},
    "longer": {"sequence_length": 256, "global_batch_size": 8, "micro_batch_size_per_rank": 4},
    "shorter": {"sequence_length": 64, "global_batch_size": 32, "micro_batch_size_per_rank": 16},
    "masked LM": {"objective": "masked_lm"},
    "more steps": {"steps": 30},
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
    from components.pretraining.loop import train
    from components.pretraining.notice import Notice

    found = {}
    with joined() as (rank, _):
        for name, told in json.loads(path.read_text()).items():
            sink = TimingSink()
            config = PretrainConfig.model_validate(told["config"])
            train(training_job(config, Path(told["data"]), Path(told["work"]), sink, name), Notice())
            times = [sink.times[step] for step in sorted(sink.times)]
            found[name] = [
                [after - before for before, after in zip(*pair, strict=True)] for pair in itertools.pairwise(times)
            ]
        if rank == 0:
            path.with_name("seconds.json").write_text(json.dumps(found))


def measure(configs: Mapping[str, PretrainConfig], folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of each step but the first, by training."""
    jobs = {}
    for name, config in configs.items():
        shards = folder / f"data-{config.sequence_length}"
        if not shards.exists():
            make_shards(shards, num_documents=6000, sequence_length=config.sequence_length, vocab_size=VOCAB)
        jobs[name] = {"data": str(shards), "work": str(folder / name), "config": config.model_dump(mode="json")}
    told = folder / "jobs.json"
    told.write_text(json.dumps(jobs))
    run("tests.benchmarks.prediction", ["--worker", str(told)], 1, folder / "store")
    found: dict[str, list[tuple[float, float]]] = json.loads((folder / "seconds.json").read_text())
    return found


def peak_flops_per_second() -> float:
    """What one thread reaches in products of large bf16 matrices."""
    code = (
        "import time, torch\ntorch.set_num_threads(1)\na = torch.randn(2048, 2048).bfloat16()\nbest = 9.0\n"
        "for _ in range(12):\n    start = time.process_time()\n    a @ a\n"
        "    best = min(best, time.process_time() - start)\nprint(2 * 2048**3 / best)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def typical(seconds: Sequence[float]) -> float:
    """The lower quartile: other work on the machine only ever lengthens a step."""
    return statistics.quantiles(seconds, n=4)[0]


def main() -> None:
    """Prints the table; exits with 1 if a prediction is off by more than 20 %."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker)
        return
    half = {"steps": CALIBRATION_STEPS // 2}
    told = {
        **{f"calibration: {name}": more | half for name, more in CALIBRATION.items()},
        **{name: {"steps": arguments.steps} | more for name, more in OTHERS.items()},
    }
    configs = {name: PretrainConfig.model_validate({**BASE, **more}) for name, more in told.items()}
    peak = peak_flops_per_second()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(configs, Path(folder))
    steps = {name: typical([cpu for _, cpu in seconds]) for name, seconds in found.items()}
    (one, first), (two, second) = list(steps.items())[:2]
    work_one, work_two = (step_flops(configs[name], VOCAB) for name in (one, two))
    # Both have the same layers and micro batches, so what differs is the FLOPs.
    flops_per_second = (work_one - work_two) / (first - second)
    parts = step_seconds(configs[one], VOCAB, 1, math.inf, 1.0)
    layer_seconds = (first - work_one / flops_per_second) / parts
    table = Table(title_justify="left", title="CPU seconds of trainings on one thread")
    for name in ("training", "steps", "FLOPs a step", "predicted", "measured", "ratio", "wall", "MFU alone"):
        table.add_column(name, justify="left" if name == "training" else "right")
    worst = 0.0
    for name, config in configs.items():
        predicted = config.steps * step_seconds(config, VOCAB, 1, flops_per_second, layer_seconds)
        simple = config.steps * step_seconds(config, VOCAB, 1, work_one / first)
        measured = config.steps * steps[name]
        wall = config.steps * statistics.median(seconds for seconds, _ in found[name])
        if name not in (one, two):
            worst = max(worst, abs(predicted / measured - 1))
        values = [f"{predicted:.2f}", f"{measured:.2f}", f"{predicted / measured:.2f}", f"{wall:.1f}"]
        flops = f"{step_flops(config, VOCAB):.2e}"
        table.add_row(name, str(config.steps), flops, *values, f"{simple / measured:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(
        f"{peak / 1e9:.0f} GFLOP/s in large products; the marginal MFU is {flops_per_second / peak:.0%}, that of the "
        f"whole calibrating step {work_one / first / peak:.0%}; {1e3 * layer_seconds:.1f} ms a layer and micro batch"
    )
    console.print(f"at most {worst:.0%} off")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
