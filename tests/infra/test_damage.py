"""Artifacts that are damaged or gone are noticed before they are used, named, and made again. On a real local Ray."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from infra.journal.execution import Execution, Listener, Outcome
from infra.journal.plan import PlannedStep, make_plan
from infra.journal.step import Step
from infra.storage import manifest
from infra.storage.store import Store
from infra.tracking.client import NullSink
from tests.infra.toy_steps import ToyConfig, step

CLUSTER = {"CPU": 2.0, "GPU": 0.0}
FACTS = {"made_by_run": "r", "tags": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def chain(value: int = 1) -> Step:
    return step("bottom", ToyConfig(value=value), middle=step("middle", top=step("top")))


def run(store: Store, last: Step, listener: Listener | None = None) -> tuple[dict[str, PlannedStep], Outcome]:
    plan = make_plan([last], store, CLUSTER)
    outcome = Execution(plan, store, NullSink(), CLUSTER, FACTS, listener or Listener()).run()
    return {planned.step.name: planned for planned in plan}, outcome


def statuses(outcome: Outcome) -> dict[str, str]:
    return {record.name: record.status for record in outcome.records}


def flip(folder: Path) -> None:
    """One bit; the size stays."""
    path = folder / "total.txt"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flip, r"its artifact is damaged: {}/total.txt differs from its manifest (SHA-256)"),
        (lambda f: (f / "total.txt").unlink(), "its artifact is damaged: {}/total.txt is missing or has another size"),
        (lambda f: (f / "manifest.json").unlink(), "its artifact is damaged: {}/manifest.json is missing or damaged"),
        (shutil.rmtree, "its artifact is missing; bottom was made from it"),
    ],
)
def test_it_is_named_and_its_step_alone_runs_again(
    store: Store, ray_cluster: Mapping[str, Any], damage: Callable[[Path], None], told: str
) -> None:
    first, _ = run(store, chain())
    folder = store.artifact_folder("middle", first["middle"].key)
    damage(folder)
    again, outcome = run(store, chain())
    (reason,) = again["middle"].reasons
    assert reason.startswith(told.format(folder))
    assert statuses(outcome) == {"top": "reused", "middle": "ran", "bottom": "reused"}
    assert {name: one.key for name, one in again.items()} == {name: one.key for name, one in first.items()}
    manifest.verify(folder)


def test_all_that_is_missing_above_a_finished_step_is_said_to_be_missing(store: Store) -> None:
    """Not that it has never been made here, nor that a value changed since some older artifact."""
    plan = make_plan([chain()], store, CLUSTER)
    other = make_plan([step("top", ToyConfig(value=9))], store, CLUSTER)[0]
    facts = {"made_by_run": "r", "finished_at": 1.0, "metrics": {}, "measured": {}, "raw": {}, "inputs": {}}
    for one in (*plan, other):
        name, key = one.step.name, one.key
        content = {**facts, "step": name, "key": key, "identity": one.identity, "records": []}
        store.commit(store.begin(name, key), name, key, content)
    for one in plan[:2]:
        shutil.rmtree(store.artifact_folder(one.step.name, one.key))
    told = {one.step.name: (one.status, one.reasons) for one in make_plan([chain()], store, CLUSTER)}
    assert told == {
        "top": ("run", ("its artifact is missing; middle was made from it",)),
        "middle": ("run", ("its artifact is missing; bottom was made from it",)),
        "bottom": ("reused", ()),
    }


def test_damage_between_the_plan_and_the_use_fails_the_step_and_the_next_run_repairs(
    store: Store, ray_cluster: Mapping[str, Any]
) -> None:
    """`middle` is sound when the run is planned, and damaged when `bottom`, the only one to run, is started."""
    first, _ = run(store, chain())
    folder = store.artifact_folder("middle", first["middle"].key)
    plan, outcome = run(store, chain(value=5), Listener(started=lambda planned: flip(folder)))
    assert statuses(outcome) == {"top": "reused", "middle": "reused", "bottom": "failed"}
    (failure,) = outcome.failures
    assert failure.fault.value == 3 and not failure.retry
    assert failure.message.startswith(f"its input middle was damaged since the run began: {folder}/total.txt differs")
    assert not (store.root / "work" / "bottom" / plan["bottom"].key).exists()  # it had not begun
    _, repaired = run(store, chain(value=5))
    assert statuses(repaired) == {"top": "reused", "middle": "ran", "bottom": "ran"}
    assert repaired.records[-1].metrics["total"] == 7
