"""What tracking costs: CPU seconds of all that tracks against those of training.

    python -m tests.benchmarks.tracking_overhead ROOT [--steps 300] [--repeats 3]

Trains `pretrain_mlm` of the default config with the tracker and without it in turn, and prints medians. ROOT keeps the
corpus and the token shards between calls. Run it on an idle machine; it says how idle it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from components.pretraining.distributed import run_distributed
from components.pretraining.export import read_result
from components.pretraining.loop import TrainingJob
from infra.cluster.session import ray_session
from infra.journal.execution import Execution, Listener
from infra.journal.plan import make_plan, order
from infra.storage.digests import DigestCache
from infra.storage.store import Store
from infra.tracking.actor import TrackerHandle, start_tracker
from infra.tracking.client import NullSink, Sink, StepTracker
from infra.tracking.messages import pipeline_started, run_ended, step_started
from infra.tracking.tracker import Destination
from pipelines.compose import load_config
from pipelines.llm import build

STEP = "pretrain_mlm"
NUM_STEPS_DEFAULT = 11
"""Steps of the pipeline `llm`."""
NUM_POINTS_DEFAULT = 110 + 50 + 30
"""Messages with points in the default run: of the three trainings, a point every tenth step."""
SECONDS_DEFAULT = 545
CPU_SECONDS_DEFAULT = 900
"""Of the trainings and the sweep in the default run, on two idle cores (LOG.md)."""
CALLS = 500


class WorkerCpu:
    """CPU seconds of Ray's processes whose title begins with `title`, the ended ones too."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._seconds: dict[int, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """The sum."""
        self._stop.set()
        self._thread.join()
        return sum(self._seconds.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            for process in _ray_processes(self._title):
                with contextlib.suppress(psutil.Error):
                    self._seconds[process.pid] = _cpu(process)


def _ray_processes(title: str) -> Iterator[psutil.Process]:
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith(title):
                yield process


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _actor_cpu() -> float:
    return sum(_cpu(process) for process in _ray_processes("ray::TrackerActor"))


def _flushed(tracker: TrackerHandle) -> float:
    """CPU seconds of the actor when all is delivered."""
    import ray

    delivery = ray.get(tracker._actor.flush.remote(120))
    assert delivery.complete, delivery.error
    return _actor_cpu()


def _shards(root: Path, steps: int) -> TrainingJob:
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


def _train(job: TrainingJob, sink: Sink, name: str) -> tuple[float, float]:
    """CPU seconds of the workers, and seconds a step."""
    from dataclasses import replace

    shutil.rmtree(job.work, ignore_errors=True)
    job.work.mkdir(parents=True)
    cpu = WorkerCpu("ray::RayTrainWorker")
    run_distributed(replace(job, tracker=StepTracker(step=STEP, sink=sink)), name)
    seconds = cpu.stop()
    result = read_result(job.work)
    assert result is not None
    rate = result["measured"]["tokens_per_second"]
    return seconds, result["metrics"]["num_tokens"] / rate / job.config.steps


def _cpu_of_calls(call: Callable[[], Any]) -> float:
    """CPU seconds of one call, all threads of this process."""
    started = time.process_time()
    for _ in range(CALLS):
        call()
        time.sleep(0.002)
    return (time.process_time() - started) / CALLS


def _cpu_in_worker(sink: Sink) -> tuple[float, float]:
    """The same of `log_metrics` and `progress` in a Ray worker."""
    tracker = StepTracker(step="calls", sink=sink)
    metrics = {"train_loss": 1.0, "learning_rate": 1.0, "gradient_norm": 1.0, "tokens_per_second": 1.0}
    numbers = iter(range(10 * CALLS))
    idle = _cpu_of_calls(lambda: None)
    points = _cpu_of_calls(lambda: tracker.log_metrics(metrics, next(numbers)))
    return points - idle, _cpu_of_calls(lambda: tracker.progress(1, 2, "steps")) - idle


def measure(root: Path, steps: int, repeats: int) -> Table:
    """Runs it all."""
    import ray

    table = Table(title=f"{STEP}, {steps} steps, {repeats} times; CPU seconds", title_justify="left", box=None)
    for column in ("part", "CPU seconds", "note"):
        table.add_column(column, overflow="fold")
    load = os.getloadavg()[0]
    config = load_config("llm", [f"storage.root={root}"])
    with ray_session(config.cluster), tempfile.TemporaryDirectory() as folder:
        job = _shards(root, steps)
        store = Destination(
            uri=f"sqlite:///{folder}/mlflow.db", experiment="e", artifact_location=f"file://{folder}/mlartifacts"
        )
        tracker = start_tracker("r", Path(folder), store, [])
        ray.get(tracker._actor.progress.remote())
        start = _actor_cpu()
        document = config.model_dump(mode="json")
        tracker.put(*pipeline_started("r", "llm", document, {}, time.time()))
        opened = _flushed(tracker)
        training = document[STEP]
        for number in range(10):
            tracker.put(
                *step_started("r", f"s{number}", "0" * 32, training, {}, root, time.time(), {}),
                run_ended(f"r/s{number}", "FINISHED", time.time()),
            )
        stepped = _flushed(tracker)
        tracker.put(*step_started("r", STEP, "1" * 32, training, {}, root, time.time(), {}))
        before = _flushed(tracker)
        with_tracker, without = [], []
        for number in range(repeats):
            without.append(_train(job, NullSink(), f"off-{number}"))
            with_tracker.append(_train(job, tracker.sink, f"on-{number}"))
        after = _flushed(tracker)
        remote = ray.remote(num_cpus=0)
        point_call, progress_call = ray.get(remote(_cpu_in_worker).remote(tracker.sink))
        called = _flushed(tracker)
        tick = _cpu_of_calls(tracker.progress)
        ticked = _actor_cpu()
        record = {
            "type": "model",
            "path": "model",
            "name": "m",
            "task": "fill-mask",
            "registered_name": "m",
            "alias": "champion",
        }
        model = str(job.work / "export" / "model")
        tracker.put({"kind": "model", "id": "r", "key": "2" * 32, "path": model, "time": 1, "record": record})
        modelled = _flushed(tracker)
        tracker.finish(60)
    step = (stepped - opened) / 10
    num_points = steps // job.config.log_every_steps
    live = (after - before) / repeats
    worker_cpu = statistics.median(cpu for cpu, _ in with_tracker)
    sent = num_points * point_call + steps * progress_call
    rows = [
        ("actor: start of the process", start, ""),
        ("actor: import of MLflow, new database, pipeline run", opened - start, ""),
        ("actor: a step's run with its config", step, f"x {NUM_STEPS_DEFAULT} steps"),
        ("actor: upload of the champion", modelled - ticked, "imports transformers"),
        ("actor: one training", live, f"{num_points} points, {live / num_points:.4f} each"),
        ("workers: calls of one training", sent, f"at most; {point_call:.5f} a point, {progress_call:.5f} progress"),
        ("actor: a call", (called - after) / (3 * CALLS), ""),
        ("driver: a look at the progress", tick, f"and {(ticked - called) / CALLS:.5f} in the actor; twice a second"),
    ]
    for name, seconds, note in rows:
        table.add_row(name, f"{seconds:.4f}", note)
    on, off = (statistics.median(seconds for _, seconds in runs) for runs in (with_tracker, without))
    cpu_off = statistics.median(cpu for cpu, _ in without)
    table.add_row("training: workers, tracker on", f"{worker_cpu:.1f}", f"off: {cpu_off:.1f}")
    table.add_row("training: this step's share", f"{(live + sent) / worker_cpu:.2%}", "actor and calls / workers")
    told = ", ".join(f"{a:.4f}/{b:.4f}" for (_, a), (_, b) in zip(with_tracker, without, strict=True))
    table.add_row("seconds a step, on", f"{on:.4f}", f"off: {off:.4f}; on/off in turn: {told}")
    ticks = 2 * SECONDS_DEFAULT * (tick + (ticked - called) / CALLS)
    fixed = opened + NUM_STEPS_DEFAULT * step + modelled - ticked
    per_point = NUM_POINTS_DEFAULT * (live / num_points + sent / num_points)
    whole = fixed + per_point + ticks
    note = f"{fixed:.1f} fixed, {per_point:.1f} points, {ticks:.1f} progress, of {CPU_SECONDS_DEFAULT}"
    table.add_row("the default, whole", f"{whole / CPU_SECONDS_DEFAULT:.2%}", note)
    table.caption = f"load before it began: {load:.2f} on {os.cpu_count()} cores"
    return table


def main() -> None:
    """Parses the arguments and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    Console(width=150).print(measure(arguments.root.resolve(), arguments.steps, arguments.repeats))


if __name__ == "__main__":
    main()
