"""Kills `gc` at every point in turn, and says what the next command makes of what is left.

A program of its own, because it forks: `python -m tests.pipelines.gc_killer FOLDER EMPTY_DATABASE [POINT ...]` prints
one JSON line a point.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from mlflow import MlflowClient
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from infra.storage.store import Store
from infra.tracking import garbage
from infra.tracking.delivered import Delivered
from pipelines.cli.gc import gc_command
from pipelines.session import deliver
from tests.infra.toy_root import ToyRoot, training
from tests.infra.toy_steps import ToyConfig, step

KILLED = 99
POINTS: list[tuple[Any, str]] = [
    (Delivered, "keep"),
    (MlflowClient, "delete_run"),
    (MlflowClient, "delete_logged_model"),
    (garbage, "_delete_files"),
    (SqlAlchemyStore, "_hard_delete_run"),
    (SqlAlchemyStore, "_hard_delete_logged_model"),
    (garbage.TrackedStore, "compact"),
    (Store, "remove"),
    (shutil, "rmtree"),
    (Path, "unlink"),
]


def fill(folder: Path, database: Path) -> ToyRoot:
    """A root with something of every kind that goes, and with something that stays."""
    root = ToyRoot(folder, database=database)
    root.run(step("last", train=training("train", data=step("data"))))
    root.run(step("bad", ToyConfig(fail="user")))
    root.run(step("last", train=training("train", ToyConfig(value=2), data=step("data"))))
    (root.store.work_folder("train", "1" * 32) / "checkpoint").write_text("x")
    (root.store.begin("train", "1" * 32) / "half").write_text("x")
    return root


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns in a process of its own; None if that was killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            content = json.dumps(work()).encode()
            with os.fdopen(writing, "wb") as stream:
                stream.write(content)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, KILLED):
        raise SystemExit(f"the child failed with {code}")
    return json.loads(content) if content else None


def gc(root: ToyRoot, die_at: int | None = None) -> int:
    """`fromzero gc`, killed before the call number `die_at` of those that change something; returns their number."""
    calls = 0
    for owner, name in POINTS:
        original = getattr(owner, name)

        def counted(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == die_at:
                os._exit(KILLED)
            return original(*args, **kwargs)

        setattr(owner, name, counted)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # until this process ends
    try:
        gc_command("llm", [f"storage.root={root.store.root}"], keep_runs=1, dry_run=False, as_json=True)
    except typer.Exit as ended:
        if ended.exit_code:
            raise
    return calls


def repair(root: ToyRoot) -> list[str]:
    """What MLflow lacks of that which a `run` that reuses all would believe to be there, and after its delivery."""
    problems = []
    writer = root.writer
    shown = {run.info.run_id for run in writer.client.search_runs([writer.experiment_id], max_results=1000)}
    delivered = Delivered.load(root.store.root, root.destination)
    problems += [f"{key} is said to be delivered" for key, run in delivered.run_ids.items() if run not in shown]
    manifests = [m for name in ("data", "train", "last") for m in root.store.manifests(name)]
    if not delivered.has(manifests):
        deliver(root.store, root.destination, [], manifests)
    found = writer.client.search_logged_models([writer.experiment_id])
    models = {model.tags["fromzero.key"]: model for model in found}
    for manifest in manifests:
        run_id = writer.find_step(manifest["key"])
        if run_id is None:
            problems.append(f"{manifest['step']} has no run")
        elif manifest["step"] == "train":
            outputs = writer.client.get_run(run_id).outputs.model_outputs
            if manifest["key"] not in models or models[manifest["key"]].model_id not in {o.model_id for o in outputs}:
                problems.append("train has no model")
    return problems


def main() -> None:
    """See the module."""
    folder, database = Path(sys.argv[1]) / "root", Path(sys.argv[2])
    in_child(lambda: fill(folder, database).artifacts() and None)
    saved = shutil.copytree(folder, Path(sys.argv[1]) / "saved")
    root = ToyRoot(folder)

    def restored(work: Callable[[], Any]) -> Any:
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
        return in_child(work)

    count = restored(lambda: gc(root))
    undisturbed = in_child(root.content)
    for point in map(int, sys.argv[3:]) if sys.argv[3:] else range(1, count + 1):
        killed = restored(lambda point=point: gc(root, die_at=point)) is None
        problems = in_child(lambda: repair(root))
        restored(lambda point=point: gc(root, die_at=point))
        in_child(lambda: gc(root))
        same = in_child(root.content) == undisturbed
        print(
            json.dumps({"point": point, "of": count, "killed": killed, "same": same, "problems": problems}), flush=True
        )


main()
