"""What the tests of roots on an object store share: steps that run in this process, and commands on a root."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from infra.journal.plan import PlannedStep, artifact_of, make_plan
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord
from infra.journal.step import Artifact, Step
from infra.journal.worker import Failure, Job, run_job
from infra.storage.objects import ObjectStore
from infra.storage.store import Store
from infra.tracking.client import NullSink, StepTracker
from pipelines.cli.gc import gc_command
from tests.infra.toy_steps import ToyConfig, step

CLUSTER = {"CPU": 2.0, "GPU": 0.0}


def chain(value: int = 1) -> Step:
    return step("bottom", ToyConfig(value=value), middle=step("middle", top=step("top")))


def plan(store: Store, *targets: Step) -> dict[str, PlannedStep]:
    return {planned.step.name: planned for planned in make_plan(targets or [chain()], store, CLUSTER)}


def run(store: Store, *targets: Step) -> dict[str, Any]:
    """Makes what is to be made, in this process; by step, the manifest or the failure of what ran."""
    made: dict[str, Any] = {}
    artifacts: dict[str, Artifact] = {}
    for name, planned in plan(store, *targets).items():
        manifest = planned.manifest
        if manifest is None:
            manifest = made[name] = run_job(
                Job(
                    step=planned.step,
                    key=planned.key,
                    identity=planned.identity,
                    definitions=planned.definitions,
                    inputs={role: artifacts[parent.name] for role, parent in planned.step.inputs.items()},
                    root=store.root,
                    tracker=StepTracker(step=name, sink=NullSink()),
                    environment={"made_by_run": "r1", "tags": {}},
                    objects=store.objects,
                )
            )
            if isinstance(manifest, Failure):
                break
        artifacts[name] = artifact_of(planned, store, manifest)
    return made


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def objects_of(store: Store) -> ObjectStore:
    assert store.objects
    return store.objects


def total(store: Store, name: str = "middle") -> str:
    """The object with what a toy step found."""
    (found,) = (n for n in objects_of(store).sizes("") if n.startswith(f"artifacts/{name}/") and "total.txt" in n)
    return found


def record(store: Store, run_id: str, **more: Any) -> RunRecord:
    facts = {
        "pipeline": "toy",
        "status": "RUNNING",
        "started_at": 1.0,
        "root": store.uri,
        "tracking_uri": "sqlite:///x",
    }
    return RunRecord.model_validate({"id": run_id, "process": ProcessIdentity.current().to_json(), **facts, **more})


def command(work: Callable[..., Any], store: Store, capfd: pytest.CaptureFixture[str], **options: Any) -> Any:
    """The exit code and the JSON document of a command."""
    capfd.readouterr()
    with pytest.raises(typer.Exit) as ended:
        work("llm", [f"storage.root={store.uri}", f"storage.local={store.root}"], as_json=True, **options)
    return ended.value.exit_code, json.loads(capfd.readouterr().out)


def gc(store: Store, capfd: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    code, told = command(gc_command, store, capfd, **{"keep_runs": 1, "dry_run": False, **options})
    assert code == 0, told
    return dict(told)


def keys(planned: dict[str, PlannedStep]) -> dict[str, str]:
    return {name: one.key for name, one in planned.items()}
