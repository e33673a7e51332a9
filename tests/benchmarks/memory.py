"""Model states of a rank, predicted and measured, for ZeRO 0 to 3 on 1, 2 and 4 ranks in bf16 and fp32.

    python -m tests.benchmarks.memory [--hidden-size 320] [--num-layers 8] [--ranks 1 2 4]

Measured are the bytes of the distinct storages that live tensors have between the backward pass and the update of the
second step, on every rank; the table has the fullest rank. What the process takes in all (resident) stands beside it,
for information: it includes Python, torch and what allocators keep. The checkpoint's size on disk is of all ranks.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from components.pretraining.config import PretrainConfig
from tests.benchmarks.ranks import joined, run

VOCAB, LENGTH = 8192, 64
BOUND = 0.05


def training(precision: str, stage: int, ranks: int, arguments: argparse.Namespace) -> PretrainConfig:
    """One micro batch of one sequence a rank, twice a step."""
    return PretrainConfig.model_validate(
        {
            "objective": "causal_lm",
            "precision": precision,
            "zero_stage": stage,
            "sequence_length": LENGTH,
            "global_batch_size": 2 * ranks,
            "micro_batch_size_per_rank": 1,
            "model": {
                "hidden_size": arguments.hidden_size,
                "num_layers": arguments.num_layers,
                "num_heads": arguments.hidden_size // 64,
            },
            "cluster": {"num_workers": ranks},
        }
    )


def live_storages() -> dict[int, int]:
    """Bytes of every storage that a live tensor has, by address."""
    import torch

    found = {}
    for value in gc.get_objects():
        if isinstance(value, torch.Tensor):
            for tensor in (value, value.grad if value.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    found[storage.data_ptr()] = storage.nbytes()
    return found


def inputs() -> dict[str, Any]:
    """One sequence of random tokens, each a target."""
    import torch

    return {
        "input_ids_BL": torch.randint(5, VOCAB, (1, LENGTH)),
        "positions_BL": torch.arange(LENGTH)[None],
        "attention_B1LL": torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).tril(),
        "target_positions_T": torch.arange(LENGTH),
        "target_ids_T": torch.randint(5, VOCAB, (LENGTH,)),
    }


def work(arguments: argparse.Namespace) -> None:
    """One rank: every precision and stage in turn."""
    import psutil
    import torch
    import torch.distributed as dist

    from components.pretraining.engine.engine import TrainingEngine
    from components.pretraining.networks.models import TargetLoss, build_model

    with joined() as (rank, ranks):
        rows = []
        for precision in ("bf16", "fp32"):
            for stage in range(4):
                config = training(precision, stage, ranks, arguments)
                gc.collect()
                before, resident = live_storages(), psutil.Process().memory_info().rss
                module = TargetLoss(build_model(config, VOCAB, {"pad": 0, "bos": 2, "eos": 3}))
                engine = TrainingEngine(module, config, ranks)
                weights_K = torch.tensor([1e-2])
                for step in range(2):
                    for _ in range(engine.num_micro_batches):
                        engine.accumulate(inputs(), weights_K)
                    if step == 0:
                        engine.update()
                gc.collect()
                held = sum(size for address, size in live_storages().items() if address not in before)
                grown = psutil.Process().memory_info().rss - resident
                with tempfile.TemporaryDirectory() as folder:
                    engine.engine.save_checkpoint(folder, tag="one")
                    saved = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
                told = torch.tensor([float(held), float(grown)])
                total = torch.tensor([float(saved)])
                dist.all_reduce(told, op=dist.ReduceOp.MAX)
                dist.all_reduce(total)
                rows.append({"precision": precision, "stage": stage, "held": told[0].item(), "grown": told[1].item()})
                rows[-1]["saved"] = total.item()
                engine.engine.destroy()
                del engine, module
    if rank == 0:
        arguments.result.write_text(json.dumps(rows))


def measure(ranks: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What `ranks` processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        told = ["--result", str(result), "--hidden-size", str(arguments.hidden_size)]
        told += ["--num-layers", str(arguments.num_layers)]
        run("tests.benchmarks.memory", told, ranks, Path(folder) / "store")
        found: list[dict[str, Any]] = json.loads(result.read_text())
        return found


def main() -> None:
    """Prints the table; exits with 1 if a prediction of states is off by more than 5 %."""
    from components.pretraining.estimates.memory import state_bytes
    from components.pretraining.estimates.scaling import checkpoint_bytes
    from components.pretraining.networks.sizes import num_parameters

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden-size", type=int, default=320)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.result:
        work(arguments)
        return
    psi = num_parameters(training("bf16", 0, 1, arguments), VOCAB)
    table = Table(title=f"{psi:,} parameters; MB of the fullest rank", title_justify="left")
    for name in (
        "precision",
        "ranks",
        "stage",
        "predicted",
        "measured",
        "ratio",
        "resident",
        "checkpoint",
        "predicted",
    ):
        table.add_column(name, justify="right")
    worst = 0.0
    for ranks in arguments.ranks:
        for row in measure(ranks, arguments):
            config = training(row["precision"], row["stage"], ranks, arguments)
            told = state_bytes(config, VOCAB, row["stage"], ranks).total
            saved = checkpoint_bytes(config, VOCAB, row["stage"], ranks)
            worst = max(worst, abs(told / row["held"] - 1))
            numbers = [told / 1e6, row["held"] / 1e6, told / row["held"], row["grown"] / 1e6, row["saved"] / 1e6]
            shown = [f"{value:.3f}" if index == 2 else f"{value:.1f}" for index, value in enumerate(numbers)]
            table.add_row(row["precision"], str(ranks), str(row["stage"]), *shown, f"{saved / 1e6:.1f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"states: at most {worst:.2%} off")
    sys.exit(worst > BOUND)


if __name__ == "__main__":
    main()
