"""An old result is accepted for new code, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UserError
from infra.journal.acceptance import accept, acceptance_key, candidate, told
from infra.journal.key import digest, identity
from infra.journal.plan import PlannedStep, make_plan
from infra.storage.store import Store
from tests.infra.toy_steps import ToyConfig, step

CLUSTER = {"CPU": 2.0, "GPU": 0.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(str(tmp_path))


def made(store: Store, name: str, content: dict[str, Any]) -> str:
    """An artifact of a toy step, made by other code; returns its key."""
    old = {**content, "code": {**content["code"], "components.gone": "0" * 32}}
    key = digest(old)
    folder = store.begin(name, key)
    facts = {"step": name, "key": key, "identity": old, "made_by_run": "run", "finished_at": 1.0}
    empty: dict[str, Any] = {"measured": {}, "records": [], "raw": {}, "inputs": {}}
    store.commit(folder, name, key, {**facts, "metrics": {"total": 1}, **empty})
    return key


def plan(store: Store, **values: Any) -> dict[str, PlannedStep]:
    top = step("top", ToyConfig(**values))
    return {one.step.name: one for one in make_plan([step("bottom", parent=top)], store, CLUSTER)}


def accepted(store: Store, planned: PlannedStep) -> None:
    manifest = candidate(store, planned.step, planned.identity)
    key = acceptance_key(planned.step, planned.identity)
    accept(store, planned.step.name, key, manifest, list(planned.reasons), "a rename")


def test_an_accepted_result_is_reused_and_what_is_below_it_too(store: Store) -> None:
    top = step("top")
    old_top = made(store, "top", identity(top, {}))
    old_bottom = made(store, "bottom", identity(step("bottom", parent=top), {"parent": old_top}))
    assert {one.status for one in plan(store).values()} == {"run"}
    accepted(store, plan(store)["top"])
    (message,) = told(store)
    now = plan(store)
    assert (now["top"].status, now["top"].key) == ("reused", old_top)
    accepted(store, now["bottom"])
    now = plan(store)
    assert (now["bottom"].status, now["bottom"].key) == ("reused", old_bottom)
    record = json.loads(message["tags"]["fromzero.accepted"])
    assert (record["accepted"], record["reason"]) == (old_top, "a rename")
    assert record["changes"] == ["code used no more: components/gone.py"] and message["id"] == "run/top"


def test_another_value_is_not_accepted(store: Store) -> None:
    made(store, "top", identity(step("top"), {}))
    with pytest.raises(UserError, match="top: not its code alone changed, but also its config"):
        accepted(store, plan(store, value=7)["top"])


def test_inputs_come_first(store: Store) -> None:
    top = step("top")
    made(store, "bottom", identity(step("bottom", parent=top), {"parent": made(store, "top", identity(top, {}))}))
    with pytest.raises(UserError, match="also its inputs; accept the steps that it takes from first"):
        accepted(store, plan(store)["bottom"])


def test_what_was_never_made_cannot_be_accepted(store: Store) -> None:
    with pytest.raises(UserError, match="top has never been made here"):
        accepted(store, plan(store)["top"])


def test_an_acceptance_whose_artifact_is_gone_or_damaged_is_none(store: Store) -> None:
    key = made(store, "top", identity(step("top"), {}))
    accepted(store, plan(store)["top"])
    (store.artifact_folder("top", key) / "manifest.json").write_text("{")
    assert plan(store)["top"].status == "run"
