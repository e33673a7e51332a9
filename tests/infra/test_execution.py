"""Plans and executions of toy steps on a real local Ray."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.journal.execution import Execution, Listener, Outcome, _Running
from infra.journal.lock import exclusive
from infra.journal.plan import PlannedStep, make_plan, neighbours
from infra.journal.step import STOP_NAME, Step
from infra.journal.worker import Failure, Job, run_job
from infra.storage.store import Store
from infra.tracking.client import NullSink, StepTracker
from tests.infra.toy_steps import ToyConfig, step

CLUSTER = {"CPU": 2.0, "GPU": 0.0}
FACTS = {"made_by_run": "r", "tags": {}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def diamond(value: int = 1, fail: str | None = None) -> Step:
    top = step("top", ToyConfig(value=value))
    left, right = step("left", ToyConfig(fail=fail), top=top), step("right", top=top)
    return step("bottom", left=left, right=right)


def run(store: Store, last: Step, listener: Listener | None = None) -> tuple[list[PlannedStep], Outcome]:
    plan = make_plan([last], store, CLUSTER)
    return plan, Execution(plan, store, NullSink(), CLUSTER, FACTS, listener or Listener()).run()


def statuses(outcome: Outcome) -> dict[str, str]:
    return {record.name: record.status for record in outcome.records}


def test_a_second_run_reuses_everything_and_prints_the_same_metrics(
    store: Store, ray_cluster: Mapping[str, Any]
) -> None:
    _, first = run(store, diamond())
    plan, second = run(store, diamond())
    assert set(statuses(first).values()) == {"ran"} and set(statuses(second).values()) == {"reused"}
    assert first.records[-1].metrics == second.records[-1].metrics == {"total": 5, "steps": 1}
    assert all(not planned.reasons for planned in plan)


def test_a_changed_value_runs_what_depends_on_it_and_says_why(store: Store, ray_cluster: Mapping[str, Any]) -> None:
    run(store, diamond())
    plan = make_plan([diamond(value=3)], store, CLUSTER)
    reasons = {planned.step.name: planned.reasons for planned in plan}
    assert reasons["top"] == ("top.value changed 1 -> 3",)
    assert reasons["bottom"] == ("top.value changed 1 -> 3",)
    assert {cause.through for planned in plan for cause in planned.causes} == {(), ("top",), ("top", "left")}


def test_a_failed_step_blocks_what_needs_it_and_leaves_the_rest_to_finish(
    store: Store, ray_cluster: Mapping[str, Any]
) -> None:
    _, outcome = run(store, diamond(fail="user"))
    assert statuses(outcome) == {"top": "ran", "left": "failed", "right": "ran", "bottom": "blocked"}
    assert [failure.message for failure in outcome.failures] == ["toy.value: 1 is not allowed; use 2"]
    assert outcome.records[-1].reasons == ["needs left, which failed"]
    _, again = run(store, diamond())
    assert statuses(again) == {"top": "reused", "left": "ran", "right": "reused", "bottom": "ran"}


@pytest.mark.parametrize(
    ("fail", "status", "fault"), [("once", "ran", None), ("bug", "failed", 1), ("die", "failed", 3)]
)
def test_only_infrastructure_errors_are_tried_again(
    store: Store, ray_cluster: Mapping[str, Any], fail: str, status: str, fault: int | None
) -> None:
    plan, outcome = run(store, step("toy", ToyConfig(fail=fail)))
    assert statuses(outcome) == {"toy": status}
    if fault is None:
        assert outcome.records[0].measured["attempts"] == 2
    else:
        attempts = store.work_folder("toy", plan[0].key) / "attempts"
        assert outcome.failures[0].fault.value == fault
        assert attempts.read_text() == ("2" if fault == 3 else "1")


def test_a_step_whose_process_outlived_its_run_is_waited_for_and_then_refused_with_its_holder(store: Store) -> None:
    """As that of a driver that was killed: it ends soon, or it is no such process."""
    (planned,) = make_plan([step("toy")], store, CLUSTER)
    job = Job(
        step=planned.step,
        key=planned.key,
        identity=planned.identity,
        definitions={},
        inputs={},
        root=store.root,
        tracker=StepTracker(step="toy"),
        environment={"made_by_run": "r", "tags": {}},
        outlived_seconds=0.2,
    )
    lock = exclusive(store.root / "locks" / f"toy-{planned.key}.lock", "toy")
    with lock:
        refused = run_job(job)
        assert isinstance(refused, Failure) and refused.fault.value == 3 and not refused.retry
        assert f"is being made by process {os.getpid()}" in refused.message
    lock = exclusive(store.root / "locks" / f"toy-{planned.key}.lock", "toy")
    lock.__enter__()
    letting_go = threading.Timer(0.5, lock.__exit__, (None, None, None))
    letting_go.start()
    made = run_job(replace(job, outlived_seconds=30.0))
    letting_go.join()
    assert not isinstance(made, Failure) and made["key"] == planned.key


def test_steps_run_at_the_same_time_only_while_their_cpus_are_free(
    store: Store, ray_cluster: Mapping[str, Any]
) -> None:
    together: list[set[str]] = []
    listener = Listener(tick=lambda running: together.append(set(running)))
    slow = ToyConfig(seconds=1.2)
    big, small, other = step("big", slow, cpus=2), step("small", slow), step("other", slow)
    run(store, step("last", big=big, small=small, other=other), listener)
    assert {"small", "other"} in together
    assert not any("big" in names and len(names) > 1 for names in together)


def test_a_wish_that_the_cluster_can_never_grant_is_refused_in_the_plan(store: Store) -> None:
    huge = step("huge", cpus=64)
    plan = make_plan([step("after", huge=huge)], store, CLUSTER)
    assert [planned.status for planned in plan] == ["blocked", "blocked"]
    assert plan[0].reasons[0].startswith("wants 64 CPUs, the cluster has 2")


def test_the_plan_says_which_steps_overlap_and_which_wait_for_room(store: Store) -> None:
    first = step("first", cpus=2)
    wide, other, light = step("wide", cpus=2, first=first), step("other", cpus=2, first=first), step("light", cpus=0)
    plan = make_plan([wide, other, light], store, CLUSTER)
    assert neighbours(plan, CLUSTER) == {
        "first": (["light"], []),
        "wide": (["light"], ["other"]),
        "other": (["light"], ["wide"]),
        "light": (["first", "wide", "other"], []),
    }
    assert neighbours(plan, {"CPU": 4.0, "GPU": 0.0})["wide"] == (["other", "light"], [])


def test_an_interrupt_cancels_each_step_once_and_those_that_can_save_not_at_all(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To cancel a task a second time, when it has ended, aborts the process (Ray 2.60)."""
    import ray

    cancelled: list[str] = []
    answers: list[Any] = [KeyboardInterrupt(), (["saves"], [])]

    def wait(*told: Any, **more: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "cancel", lambda reference, force: cancelled.append(reference))
    execution = Execution([], store, NullSink(), CLUSTER, FACTS, Listener())
    for name, seconds in (("saves", 5.0), ("one", 0.0), ("other", 0.0)):
        planned: Any = SimpleNamespace(step=SimpleNamespace(name=name, stop_seconds=seconds), key="k")
        execution._running[name] = _Running(planned, 0.0)
    with pytest.raises(KeyboardInterrupt):
        execution.run()
    assert cancelled == ["one", "other"]
    assert (store.root / "work" / "saves" / "k" / STOP_NAME).is_file()
