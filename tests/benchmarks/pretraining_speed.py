"""How fast training is: ours under Ray Train with MLflow, plain torch, bare DeepSpeed, Hugging Face's Trainer.

    python -m tests.benchmarks.pretraining_speed ROOT [--rounds 12] [--steps 2] [--sides plain=1x2/8,...]

All sides are alive at once and take turns of a few optimizer steps (`turns.py`), on the same network, batches and
precision. A rate counts real tokens, no padding, of steps after the first turn. `--sides` takes any number of
NAME=RANKSxTHREADS/MICRO, so the best batch shape of a side is found by giving it several times:

    --sides plain=1x2/8,plain=1x2/16,deepspeed=2x1/8,ours=2x1/8,ray=2x1/8,ray=1x1/8,trainer=2x1/8
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from components.pretraining.config import PretrainConfig
from components.pretraining.sampler import Sampler
from components.tokenization.shards import TokenShards
from infra.cluster.environment import run_environment, variables
from infra.errors import InfrastructureError
from infra.journal.step import STOP_NAME
from tests.benchmarks.ranks import Processes, training_job
from tests.benchmarks.turns import Stretch, Turn, Turns, TurnSink, paired

DEFAULT_SIDES = "plain=1x2/8,deepspeed=2x1/8,ours=2x1/8,ray=2x1/8,ray=1x1/8,trainer=2x1/8"
WARM_UP_TURNS = 1
NUM_DOCUMENTS, SEQUENCE_LENGTH, VOCAB_SIZE = 60_000, 256, 4096
ENDLESS = 1_000_000
"""Steps of a training that the benchmark ends."""
STOP_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One side: what, on how many ranks of how many threads, with how many sequences at once."""

    kind: str
    num_ranks: int
    num_threads: int
    micro: int

    @property
    def name(self) -> str:
        """As it was written."""
        return f"{self.kind}={self.num_ranks}x{self.num_threads}/{self.micro}"

    @property
    def folder(self) -> str:
        """The name as that of a folder."""
        return self.name.replace("=", "-").replace("/", "-")

    @classmethod
    def parse(cls, text: str) -> Asked:
        """From NAME=RANKSxTHREADS/MICRO."""
        kind, _, shape = text.partition("=")
        ranks, _, rest = shape.partition("x")
        threads, _, micro = rest.partition("/")
        return cls(kind=kind, num_ranks=int(ranks), num_threads=int(threads), micro=int(micro))

    def config(self, options: argparse.Namespace) -> PretrainConfig:
        """The training."""
        return PretrainConfig.model_validate(
            {
                "objective": "causal_lm",
                "model": {"architecture": options.architecture, "hidden_size": 256, "num_layers": 6, "num_heads": 4},
                "steps": ENDLESS,
                "warmup_steps": 100,
                "learning_rate": 1e-3,
                "sequence_length": SEQUENCE_LENGTH,
                "global_batch_size": options.batch,
                "precision": options.precision,
                "zero_stage": options.zero_stage,
                "micro_batch_size_per_rank": self.micro,
                "checkpoint_every_steps": None,
                "log_every_steps": options.steps,
                "health": {"hang_timeout_seconds": 86400},  # a rank waits while other sides have their turns
                "cluster": {"num_workers": self.num_ranks, "threads_per_worker": self.num_threads},
            }
        )


def make_data(root: Path) -> Path:
    """Glosses of WordNet in `root/data`: tokenizer and packed token shards."""
    from tests.components.pretraining.data import make_shards

    folder = root / "data"
    if not (folder / "token_shards" / "shards.json").is_file():
        make_shards(folder, num_documents=NUM_DOCUMENTS, sequence_length=SEQUENCE_LENGTH, vocab_size=VOCAB_SIZE)
    return folder


@contextmanager
def under_ray(
    asked: Sequence[Asked], options: argparse.Namespace, data: Path, root: Path, address: str
) -> Iterator[None]:
    """(c): ours as a run starts it, under Ray Train, its points going to the run's tracker and to MLflow."""
    from components.pretraining.distributed import run_distributed
    from infra.cluster.config import ClusterConfig
    from infra.cluster.session import ray_session
    from infra.tracking.actor import start_tracker
    from infra.tracking.messages import pipeline_started, step_started
    from infra.tracking.tracker import Destination

    def until_stopped(job: Any, name: str) -> None:
        try:
            run_distributed(job, name)
        except InfrastructureError as error:
            if not (job.work / STOP_NAME).exists():
                print(f"{name} has ended: {error}", file=sys.stderr, flush=True)

    jobs: list[Any] = []
    threads: list[threading.Thread] = []
    cpus = sum(one.num_ranks * one.num_threads for one in asked) + 1
    cluster = ClusterConfig.model_validate({"num_cpus": cpus})
    with ray_session(cluster), tempfile.TemporaryDirectory() as folder:
        location = f"file://{folder}/mlartifacts"
        store = Destination(uri=f"sqlite:///{folder}/mlflow.db", experiment="e", artifact_location=location)
        tracker = start_tracker("r", Path(folder), store, [])
        tracker.put(*pipeline_started("r", "speed", {}, {}, time.time()))
        for one in asked:
            config = one.config(options)
            document = config.model_dump(mode="json")
            tracker.put(*step_started("r", one.name, "1" * 32, document, {}, root, time.time(), {}))
            sink = TurnSink(turn=Turn(address=address, side=one.name), inner=tracker.sink)
            jobs.append(training_job(config, data, Path(folder) / one.folder, sink, one.name))
            threads.append(threading.Thread(target=until_stopped, args=(jobs[-1], one.folder), daemon=True))
            threads[-1].start()
        yield
        for job in jobs:
            (job.work / STOP_NAME).touch()
        for thread in threads:
            thread.join(STOP_SECONDS)


class Tokens:
    """Real tokens of the global batches: what is counted, whoever trained on them."""

    def __init__(self, data: Path, batch: int) -> None:
        self._shards = TokenShards(data / "token_shards", "train")
        self._sampler = Sampler(num_sequences=len(self._shards), global_batch_size=batch, seed=0)
        self._of_step: dict[int, int] = {}

    def of(self, stretch: Stretch) -> int:
        """Tokens of a turn."""
        return sum(self._step(step) for step in range(stretch.first_step, stretch.last_step))

    def _step(self, step: int) -> int:
        if step not in self._of_step:
            indices_G, _ = self._sampler.global_batch(step)
            self._of_step[step] = int(np.count_nonzero(self._shards.segments(indices_G) > 0))
        return self._of_step[step]


def measure(options: argparse.Namespace, sides: Sequence[Asked]) -> dict[str, list[float]]:
    """Tokens per second of each side in each round."""
    root = options.root.resolve()
    data = make_data(root)
    tokens = Tokens(data, options.batch)
    address = str(Path(tempfile.mkdtemp()) / "turns")
    turns, processes = Turns(address), Processes()
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    ray_sides = [side for side in sides if side.kind == "ray"]
    with ExitStack() as stack:
        stack.callback(processes.stop)
        for number, side in enumerate(one for one in sides if one.kind != "ray"):
            told = {"kind": side.kind, "name": side.name, "config": side.config(options).model_dump(mode="json")}
            told |= {"data": str(data), "address": address}
            processes.start(root / "work" / side.folder, side.num_ranks, side.num_threads, told, 29600 + number)
        if ray_sides:
            stack.enter_context(variables(run_environment()))
            stack.enter_context(under_ray(ray_sides, options, data, root, address))
            stack.callback(turns.close)  # first: who waits for a turn goes on, and hears that it is to stop
        turns.admit([side.name for side in sides], processes.check)
        for number in range(options.rounds + WARM_UP_TURNS):
            for side in sides if number % 2 else reversed(sides):
                stretch = turns.give(side.name)
                if number >= WARM_UP_TURNS:
                    rates[side.name].append(tokens.of(stretch) / stretch.seconds)
    return rates


def show(rates: Mapping[str, Sequence[float]], load: float) -> None:
    """Prints the table."""
    base = next(iter(rates))
    table = Table(title="Steady state, real tokens per second", title_justify="left", box=None)
    for column in ("side", "median", "lowest", "highest", f"/ {base}"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for name, found in rates.items():
        table.add_row(
            name,
            f"{statistics.median(found):,.0f}",
            f"{min(found):,.0f}",
            f"{max(found):,.0f}",
            f"{paired(rates, name, base):.3f}",
        )
    table.caption = f"{len(rates[base])} rounds; load before it began: {load:.2f} on {os.cpu_count()} cores"
    Console(width=150).print(table)


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--sides", default=DEFAULT_SIDES)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps of a turn")
    parser.add_argument("--batch", type=int, default=32, help="global batch, sequences")
    parser.add_argument("--architecture", default="llama")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--zero-stage", type=int, default=1)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    show(measure(options, [Asked.parse(text) for text in options.sides.split(",")]), load)


if __name__ == "__main__":
    main()
