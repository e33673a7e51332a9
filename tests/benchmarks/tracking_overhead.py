"""What tracking costs: CPU seconds of all that tracks against those of training, and the step time with and without.

    python -m tests.benchmarks.tracking_overhead ROOT [--steps 300] [--repeats 5] [--skip-default]

First a whole default run on the fresh root ROOT/default, whose processes are watched from outside. Then the training
`pretrain_mlm` of the default alone, without the tracker and with it in turn. Run it on an idle machine; it says how
idle it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from components.pretraining.distributed import run_distributed
from components.pretraining.export import read_result
from components.pretraining.training import TrainingJob
from infra.cluster.session import ray_session
from infra.journal.execution import Execution, Listener
from infra.journal.plan import make_plan, order
from infra.storage.digests import DigestCache
from infra.storage.store import Store
from infra.tracking.actor import start_tracker
from infra.tracking.client import NullSink, Sink, StepTracker
from infra.tracking.messages import pipeline_started, step_started
from infra.tracking.tracker import Destination
from pipelines.compose import load_config
from pipelines.llm import build

STEP = "pretrain_mlm"
TRACKER = "ray::TrackerActor"
TRAINING = ("ray::RayTrainWorker", "ray::ResourceTrainable")
"""Workers of the three trainings, and the processes of the sweep."""
PROJECT = Path(__file__).resolve().parents[2]
CALLS = 500
PROGRESS_PER_SECOND = 1.0
"""Messages of a training about its progress; see `loop.PROGRESS_SECONDS`."""


class Family:
    """CPU seconds of a process and of all that descend from it, the ended ones too."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seconds: dict[int, float] = {}
        self._titles: dict[int, set[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch."""
        self._over.set()
        self._thread.join()

    def seconds(self, *titles: str) -> float:
        """The sum of all processes whose title began with one of `titles`, at any time; without any, of all."""
        return sum(
            seconds
            for pid, seconds in self._seconds.items()
            if not titles or any(seen.startswith(titles) for seen in self._titles[pid])
        )

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._seconds[process.pid] = float(times.user + times.system)
                    self._titles.setdefault(process.pid, set()).add("".join(process.cmdline()[:1]))


@contextlib.contextmanager
def watched(pid: int) -> Iterator[Family]:
    """The family of `pid` while the block runs."""
    family = Family(pid)
    try:
        yield family
    finally:
        family.stop()


def default_run(root: Path) -> Iterator[tuple[str, str, str]]:
    """Rows of a whole run of the default, as a user starts it."""
    shutil.rmtree(root, ignore_errors=True)
    command = [sys.executable, "-m", "pipelines.cli", "run", f"storage.root={root}"]
    started = time.monotonic()
    run = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    with watched(run.pid) as family:
        said = (run.stderr or sys.stderr).read()
        assert run.wait() == 0, said
    seconds = time.monotonic() - started
    tracking, training = family.seconds(TRACKER), family.seconds(*TRAINING)
    assert tracking and training, "no such processes were seen"
    yield "default: all processes", f"{family.seconds():.1f}", f"{seconds:.0f} s"
    yield "default: training", f"{training:.1f}", "workers of the trainings and of the sweep, their start included"
    yield "default: tracker", f"{tracking:.1f}", "its start, MLflow, the champion's upload and the wait included"
    yield "default: tracker / training", f"{tracking / training:.2%}", ""


def _training(root: Path, steps: int) -> TrainingJob:
    """The training of the default config; makes the corpus, tokenizer and token shards if they are not there."""
    config = load_config("llm", [f"storage.root={root}", f"{STEP}.steps={steps}"])
    store = Store.open(config.storage.root)
    with DigestCache.opened(store.root / "cache" / "digests.json") as digests:
        training = next(step for step in order([build(config, digests)]) if step.name == STEP)
    plan = make_plan(list(training.inputs.values()), store, {"CPU": 2.0, "GPU": 0.0})
    facts = {"made_by_run": "benchmark", "tags": {}}
    outcome = Execution(plan, store, NullSink(), {"CPU": 2.0}, facts, Listener()).run()
    assert not outcome.failures, outcome.failures
    folders = {planned.step.name: store.artifact_folder(planned.step.name, planned.key) for planned in plan}
    return TrainingJob(
        config=config.pretrain_mlm,
        shards=folders["token_shards"],
        tokenizer=folders["tokenizer"] / "tokenizer",
        work=root / "work" / "benchmark",
        key="0" * 32,
        name=STEP,
        tracker=StepTracker(step=STEP),
    )


def _step_seconds(job: TrainingJob, sink: Sink, name: str) -> float:
    """Seconds of one training step."""
    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir(parents=True)
    run_distributed(replace(job, tracker=StepTracker(step=STEP, sink=sink)), name)
    result = read_result(job.work)
    assert result is not None
    return float(result["metrics"]["num_tokens"] / result["measured"]["tokens_per_second"] / job.config.steps)


def _cpu_in_worker(sink: Sink) -> float:
    """CPU seconds that a worker pays for one message."""
    tracker = StepTracker(step="calls", sink=sink)
    metrics = {"train_loss": 1.0, "learning_rate": 1.0, "gradient_norm": 1.0, "tokens_per_second": 1.0}
    began = time.process_time()
    for number in range(CALLS):
        tracker.log_metrics(metrics, number)
        time.sleep(0.002)
    return (time.process_time() - began) / CALLS


def in_turn(root: Path, steps: int, repeats: int) -> Iterator[tuple[str, str, str]]:
    """Rows of one training, without the tracker and with it in turn."""
    import ray

    config = load_config("llm", [f"storage.root={root}"])
    with ray_session(config.cluster), tempfile.TemporaryDirectory() as folder:
        job = _training(root, steps)
        location = f"file://{folder}/mlartifacts"
        store = Destination(uri=f"sqlite:///{folder}/mlflow.db", experiment="e", artifact_location=location)
        tracker = start_tracker("r", Path(folder), store, [])
        document = config.model_dump(mode="json")
        tracker.put(*pipeline_started("r", "llm", document, {}, time.time()))
        tracker.put(*step_started("r", STEP, "1" * 32, document[STEP], {}, root, time.time(), {}))
        on, off = [], []
        for number in range(repeats):
            off.append(_step_seconds(job, NullSink(), f"off-{number}"))
            on.append(_step_seconds(job, tracker.sink, f"on-{number}"))
        call = ray.get(ray.remote(num_cpus=0)(_cpu_in_worker).remote(tracker.sink))
        delivery = tracker.finish(120)
        assert delivery.complete, delivery.error
    told = ", ".join(f"{a:.4f}/{b:.4f}" for a, b in zip(on, off, strict=True))
    yield "a step with the tracker", f"{statistics.median(on):.4f}", f"seconds, median; on/off in turn: {told}"
    yield "a step without it", f"{statistics.median(off):.4f}", "seconds, median"
    ratio = statistics.median(a / b for a, b in zip(on, off, strict=True))
    yield "on / off", f"{ratio:.3f}", "median of the pairs"
    rate = PROGRESS_PER_SECOND + 1 / (job.config.log_every_steps * statistics.median(on))
    yield "a message, in the worker", f"{call:.5f}", f"CPU seconds; at {rate:.1f} a second {call * rate:.3%} of a core"


def show(rows: Sequence[tuple[str, str, str]], load: float) -> None:
    """Prints the table."""
    table = Table(title="What tracking costs, in CPU seconds", title_justify="left", box=None)
    for column in ("part", "value", "note"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    table.caption = f"load before it began: {load:.2f} on {os.cpu_count()} cores"
    Console(width=150).print(table)


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--skip-default", action="store_true")
    arguments = parser.parse_args()
    root, load = arguments.root.resolve(), os.getloadavg()[0]
    rows = [] if arguments.skip_default else [*default_run(root / "default")]
    show([*rows, *in_turn(root, arguments.steps, arguments.repeats)], load)


if __name__ == "__main__":
    main()
