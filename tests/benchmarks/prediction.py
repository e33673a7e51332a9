"""Seconds of trainings, predicted from 20 steps, against those that they take.

    python -m tests.benchmarks.prediction ROOT [--times 5]

The arithmetic is that of `plan` (`estimates.scaling.step_seconds`): FLOPs at an MFU, and for each layer a time for each
micro batch and for each token. Twenty steps, five each of four trainings that differ in width and in micro batches,
give all three by least squares of the relative errors; the others differ in width, depth, batch, length, objective or
number of steps. Real trainings: data, sampler, engine, tracker, without Ray, one rank of one thread. The last column
is what the MFU of the twenty steps alone would predict.

All trainings are alive at once and take turns of a step or a few (`turns.py`), so that the steps that calibrate and
those that are predicted meet the same machine: one after the other, its speed moved by half between them. It still
moves within seconds, so all of it is done several times, and the median ratio counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from components.pretraining.config import PretrainConfig
from components.pretraining.estimates.scaling import step_flops, step_seconds
from tests.benchmarks.ranks import Processes
from tests.benchmarks.turns import Turns
from tests.components.pretraining.data import make_shards

VOCAB = 2048
WARM_UP_TURNS = 1
ROUNDS = 5
BOUND = 0.20
BASE: dict[str, Any] = {
    "objective": "causal_lm",
    "model": {"hidden_size": 256, "num_layers": 4, "num_heads": 4},
    "steps": 1_000_000,  # the benchmark ends it
    "global_batch_size": 16,
    "micro_batch_size_per_rank": 8,
    "sequence_length": 128,
    "log_every_steps": 2,  # the steps of a turn
    "checkpoint_every_steps": None,
    "max_validation_sequences": 4,
    "num_samples": 0,
    "health": {"hang_timeout_seconds": 86400},  # a rank waits while others have their turns
    "cluster": {"num_workers": 1},
}
CALIBRATION: dict[str, dict[str, Any]] = {
    "width 512": {"model": {"hidden_size": 512, "num_layers": 4, "num_heads": 8}},
    "width 128": {"model": {"hidden_size": 128, "num_layers": 4, "num_heads": 2}},
    "micro batches of 2": {"micro_batch_size_per_rank": 2},
    "micro batches of 16": {"micro_batch_size_per_rank": 16},
}
OTHERS: dict[str, dict[str, Any]] = {
    "width 256, micro batches of 8": {},
    "width 768, half the depth": {"model": {"hidden_size": 768, "num_layers": 2, "num_heads": 12}},
    "twice the depth": {"model": {"hidden_size": 256, "num_layers": 8, "num_heads": 4}},
    "twice the batch": {"global_batch_size": 32},
    "micro batches of 4": {"micro_batch_size_per_rank": 4},
    "sequences of 256": {"sequence_length": 256, "global_batch_size": 8, "micro_batch_size_per_rank": 4},
    "sequences of 64": {"sequence_length": 64, "global_batch_size": 32, "micro_batch_size_per_rank": 16},
    "masked LM": {"objective": "masked_lm"},
    "three times the steps": {"log_every_steps": 6},
}


def measure(configs: Mapping[str, PretrainConfig], root: Path, times: int) -> list[dict[str, float]]:
    """Seconds that each training takes for its steps, each time."""
    address = str(Path(tempfile.mkdtemp()) / "turns")
    turns, processes = Turns(address), Processes()
    seconds = [dict.fromkeys(configs, 0.0) for _ in range(times)]
    with ExitStack() as stack:
        stack.callback(processes.stop)
        for number, (name, config) in enumerate(configs.items()):
            data = root / f"data-{config.sequence_length}"
            if not (data / "token_shards" / "shards.json").is_file():
                make_shards(data, num_documents=6000, sequence_length=config.sequence_length, vocab_size=VOCAB)
            told = {"kind": "ours", "name": name, "config": config.model_dump(mode="json")}
            told |= {"data": str(data), "address": address}
            processes.start(root / "work" / str(number), 1, 1, told, 29600 + number)
        turns.admit(list(configs), processes.check)
        for number in range(times * ROUNDS + WARM_UP_TURNS):
            for name in configs if number % 2 else reversed(configs):
                stretch = turns.give(name)
                if number >= WARM_UP_TURNS:
                    seconds[(number - WARM_UP_TURNS) // ROUNDS][name] += stretch.seconds
    return seconds


def parts(config: PretrainConfig) -> list[float]:
    """Of a step: FLOPs, layers of micro batches, layers of tokens."""
    units: tuple[dict[str, float], ...] = ({"layer_seconds": 1.0}, {"layer_token_seconds": 1.0})
    return [step_flops(config, VOCAB), *(step_seconds(config, VOCAB, 1, np.inf, **unit) for unit in units)]


def peak_flops_per_second() -> float:
    """What one thread reaches in products of large bf16 matrices."""
    code = (
        "import time, torch\ntorch.set_num_threads(1)\na = torch.randn(2048, 2048).bfloat16()\nbest = 9.0\n"
        "for _ in range(12):\n    start = time.process_time()\n    a @ a\n"
        "    best = min(best, time.process_time() - start)\nprint(2 * 2048**3 / best)"
    )
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Prints the table; exits with 1 if the prediction of a training is off by more than 20 %."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    told = {name: {**more, "log_every_steps": 1} for name, more in CALIBRATION.items()} | OTHERS
    configs = {name: PretrainConfig.model_validate({**BASE, **more}) for name, more in told.items()}
    steps = {name: ROUNDS * config.log_every_steps for name, config in configs.items()}
    known = {name: np.array(parts(config)) for name, config in configs.items()}
    known_C3 = np.array([known[name] for name in CALIBRATION])
    peak = peak_flops_per_second()
    costs, mean_rates = [], []
    predicted: dict[str, list[float]] = {name: [] for name in configs}
    measured: dict[str, list[float]] = {name: [] for name in configs}
    simple: dict[str, list[float]] = {name: [] for name in configs}
    for seconds in measure(configs, options.root.resolve(), options.times):
        step_C = np.array([seconds[name] / steps[name] for name in CALIBRATION])
        costs_3, *_ = np.linalg.lstsq(known_C3 / step_C[:, None], np.ones(len(step_C)), rcond=None)
        costs.append(costs_3)
        mean_rates.append(known_C3[:, 0].sum() / step_C.sum())
        for name in configs:
            measured[name].append(seconds[name])
            predicted[name].append(steps[name] * float(known[name] @ costs_3))
            simple[name].append(steps[name] * known[name][0] / mean_rates[-1])
    title = f"Seconds of trainings on one thread, medians of {options.times} times"
    table = Table(title_justify="left", title=title, box=None)
    for name in ("training", "steps", "FLOPs a step", "predicted", "measured", "ratio", "lowest, highest", "MFU alone"):
        table.add_column(name, justify="left" if name == "training" else "right")
    worst = 0.0
    for name in configs:
        ratios, simple_ratios = (
            [one / other for one, other in zip(values[name], measured[name], strict=True)]
            for values in (predicted, simple)
        )
        ratio = statistics.median(ratios)
        if name not in CALIBRATION:
            worst = max(worst, abs(ratio - 1))
        row = [f"{'calibration: ' if name in CALIBRATION else ''}{name}", str(steps[name]), f"{known[name][0]:.2e}"]
        row += [f"{statistics.median(values[name]):.2f}" for values in (predicted, measured)]
        row += [f"{ratio:.2f}", f"{min(ratios):.2f}, {max(ratios):.2f}", f"{statistics.median(simple_ratios):.2f}"]
        table.add_row(*row)
    table.caption = f"load before it began: {load:.2f} on {os.cpu_count()} cores"
    flop_seconds, layer_seconds, layer_token_seconds = np.median(costs, axis=0)
    console = Console(width=130)
    console.print(table)
    console.print(
        f"{peak / 1e9:.0f} GFLOP/s in large products; the marginal MFU is {1 / flop_seconds / peak:.0%}, that of the "
        f"calibrating steps as a whole {statistics.median(mean_rates) / peak:.0%}; a layer costs "
        f"{1e3 * layer_seconds:.1f} ms a micro batch and {1e6 * layer_token_seconds:.1f} us a token"
    )
    console.print(f"at most {worst:.0%} off")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
