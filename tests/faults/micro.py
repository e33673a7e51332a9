"""The micro pipeline: the real steps from raw text to a registered classifier, at their smallest, and what is left of
a run: all that must be the same whatever was killed on the way."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from infra.storage import manifest

PROJECT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).parent / "inject"
TIMEOUT_SECONDS = 300
GONE_SECONDS = 90
"""How long the processes of a run may take to end after their driver: Ray's agents try for a minute to tell a head that
is gone too (Ray 2.60)."""
CHECKPOINT_EVERY_STEPS = 2
ARGUMENTS = (
    "smoke",
    "--until=finetune",
    "--json",
    "cluster.num_workers=1",
    "corpus.sample_fraction=0.02",
    "task.sample_fraction=0.02",
    "tokenizer.vocab_size=512",
    "pretrain_mlm.steps=8",
    f"pretrain_mlm.checkpoint_every_steps={CHECKPOINT_EVERY_STEPS}",
    "pretrain_mlm.log_every_steps=1",
    "pretrain_mlm.validation_every_steps=4",
    "pretrain_mlm.max_validation_sequences=8",
    "finetune.label_budgets=[60]",
    "finetune.num_trials=2",
    "finetune.num_rungs=1",
    "finetune.seeds=1",
    "finetune.trials_concurrency=1",
    "finetune.epochs_small=[1]",
    "finetune.max_tokens_per_fit=2000",
    "finetune.max_tokens_per_trial=1000",
    "finetune.max_validation_rows=30",
)
MEASURED = {"measured.json"}
"""Files that say how long something took."""


@dataclass(frozen=True)
class Fault:
    """Whom to kill, and when: see `inject/sitecustomize.py`."""

    name: str
    victim: str
    event: str
    pattern: str
    nth: int = 1
    signal: str = "SIGKILL"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run that is over."""

    code: int
    out: str
    err: str
    seconds: float
    members: frozenset[psutil.Process]
    """Every process that the run had."""
    killed: dict[str, Any] | None
    """Where the fault struck, and the process ids."""


def run(folder: Path, fault: Fault | None = None, *arguments: str) -> Ended:
    """Runs the micro pipeline on `folder`/root, to the end of its driver."""
    folder.mkdir(parents=True, exist_ok=True)
    meet = Path(tempfile.mkdtemp(prefix="fault-", dir=folder))  # what outlives a killed run does not meet the next one
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(INJECT)])}
    if fault:
        environment["FROMZERO_FAULT"] = json.dumps({**asdict(fault), "folder": str(meet)})
    command = [sys.executable, "-m", "pipelines.cli", "run", *ARGUMENTS, f"storage.root={folder / 'root'}", *arguments]
    started = time.monotonic()
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:
        driver = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err)
        (meet / "driver.pid").write_text(str(driver.pid))
        with family(driver.pid) as members:
            try:
                code = driver.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                code = -int(signal.SIGALRM)
            seconds = time.monotonic() - started
        out.seek(0)
        err.seek(0)
        killed = json.loads((meet / "killed").read_text()) if (meet / "killed").exists() else None
        return Ended(
            code=code, out=out.read(), err=err.read(), seconds=seconds, members=frozenset(members), killed=killed
        )


def orphans(*runs: Ended) -> list[str]:
    """Processes of runs that are over which do not end by themselves; they are killed."""
    _, alive = psutil.wait_procs([member for ended in runs for member in ended.members], timeout=GONE_SECONDS)
    found = [f"{process.pid} {_title(process)}" for process in alive]
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    return found


@contextlib.contextmanager
def family(pid: int) -> Iterator[set[psutil.Process]]:
    """All processes that descend from `pid`, as they come; the set grows in the background."""
    members: set[psutil.Process] = {psutil.Process(pid)}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.3):
            pids = {member.pid for member in members}
            for process in psutil.process_iter(["ppid"]):  # parents come before their children
                if process.info["ppid"] in pids and process.pid not in pids:
                    pids.add(process.pid)
                    members.add(process)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield members
    finally:
        over.set()
        watcher.join()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:120]
    except psutil.Error:
        return "gone"


@dataclass(frozen=True, kw_only=True)
class Left:
    """What a root holds when all is done."""

    keys: dict[str, str]
    metrics: dict[str, Any]
    """By step: losses as JSON prints them, so to the bit."""
    files: dict[str, dict[str, str]]
    """SHA-256 of every file of each artifact but those of MEASURED: models, shards, results."""
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    """What MLflow shows of finished runs of steps and trials: by metric, (training step, value)."""
    num_versions: int
    alias_key: str


def left(root: Path) -> Left:
    """Reads a root. Fails where something is half done, double or still running."""
    manifests = {path.name: manifest.verify(path) for path in sorted((root / "artifacts").glob("*/*"))}
    assert not list((root / "temporary").iterdir()), "rubbish of a killed attempt"
    deterministic = {name for content in manifests.values() for name in content["metrics"]}
    deterministic |= {"train_loss", "validation_loss", "learning_rate", "gradient_norm"}
    with contextlib.closing(sqlite3.connect(f"file:{root / 'mlflow.db'}?mode=ro", uri=True)) as database:
        curves = _curves(database, deterministic)
        versions = database.execute("SELECT count(*) FROM model_versions").fetchone()[0]
        query = """SELECT t.value FROM registered_model_aliases a JOIN model_version_tags t
            ON t.name = a.name AND t.version = a.version WHERE a.alias = 'champion' AND t.key = 'fromzero.key'"""
        (alias_key,) = database.execute(query).fetchone()
    return Left(
        keys={content["step"]: key for key, content in manifests.items()},
        metrics={content["step"]: content["metrics"] for content in manifests.values()},
        files={
            content["step"]: {name: file["sha256"] for name, file in content["files"].items() if name not in MEASURED}
            for content in manifests.values()
        },
        curves=curves,
        num_versions=versions,
        alias_key=alias_key,
    )


def _curves(database: sqlite3.Connection, deterministic: set[str]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    running = database.execute("SELECT name FROM runs WHERE status IN ('RUNNING', 'SCHEDULED')").fetchall()
    assert not running, f"left running: {running}"
    double = database.execute(
        "SELECT run_uuid, key, step, count(*) FROM metrics GROUP BY run_uuid, key, step HAVING count(*) > 1"
    ).fetchall()
    assert not double, f"points that stand twice: {double}"
    names = dict(database.execute("SELECT run_uuid, value FROM tags WHERE key = 'fromzero.id'").fetchall())
    assert len(set(names.values())) == len(names), "two MLflow runs with one id"
    finished = [row[0] for row in database.execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED'")]
    ended_well = {names[run_id] for run_id in finished}
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for run_id in finished:
        _, _, name = names[run_id].partition("/")
        step = "/".join(names[run_id].split("/")[:2])
        if not name or step not in ended_well:
            continue  # the pipeline's own run; a trial that had ended when its step was killed
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step"
        for metric, step, value in database.execute(query, (run_id,)):
            if metric.removeprefix("model_") in deterministic:
                curves.setdefault(name, {}).setdefault(metric, []).append((step, value))
    return curves
