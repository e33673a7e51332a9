"""`gc` on a root on an object store that several machines see."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infra.journal import runs
from infra.storage.manifest import sealed
from infra.storage.objects import ObjectStore
from infra.storage.store import Store
from infra.tracking.delivered import Delivered
from infra.tracking.tracker import Destination
from pipelines.cli.gc import gc_command
from tests.infra.object_roots import chain, command, gc, keys, objects_of, plan, record, run
from tests.infra.toy_steps import step


def filled(store: Store) -> dict[str, str]:
    """Two runs, of which the last needs `bottom` with value 5 alone; returns its keys."""
    run(store)
    old = plan(store)
    runs.save(store, record(store, "20260101-000001-aaaaaa", status="FINISHED", planned=keys(old)))
    run(store, chain(value=5))
    new = plan(store, chain(value=5))
    runs.save(store, record(store, "20260101-000002-bbbbbb", status="FINISHED", planned=keys(new)))
    folder = store.work_folder("bottom", "1" * 32)
    (folder / "half").write_text("x")
    store.mirror.push(folder)
    objects_of(store).write(f"artifacts/top/{new['top'].key}/0badbeef/half", b"x")  # an upload that was killed
    return keys(new)


def test_gc_removes_on_both_sides_what_no_machine_needs(
    machines: tuple[Store, Store], capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = machines
    needed = filled(one)
    before = objects_of(one).sizes("")
    told = gc(other, capfd, dry_run=True)
    assert objects_of(one).sizes("") == before
    done = gc(other, capfd)
    assert {**done, "dry_run": True} == told
    assert [item["kind"] for item in done["removed"]] == ["artifact", "work folder", "rubbish", "run record"]
    assert done["num_bytes"] > 0 and done["root"] == one.uri
    left = objects_of(one).sizes("")
    assert {name.split("/")[2] for name in left if name.startswith("artifacts/")} == set(needed.values())
    assert not [name for name in left if "0badbeef" in name or name.startswith("work/")]
    assert [r.id for r in runs.load_all(one)] == ["20260101-000002-bbbbbb"]
    gc(one, capfd)  # the copies of this machine
    assert {path.name for path in (one.root / "artifacts").glob("*/*")} == set(needed.values())
    assert gc(one, capfd)["removed"] == []


def dying(original: Callable[..., None], calls: Iterator[int], die_at: int | None) -> Callable[..., None]:
    """The same, killed at the call number `die_at`."""

    def call(*arguments: Any) -> None:
        if next(calls) == die_at:
            raise KeyboardInterrupt
        original(*arguments)

    return call


def test_a_gc_that_was_killed_anywhere_can_be_repeated(
    machines: tuple[Store, Store], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = machines
    left: list[set[str]] = []
    for die_at in (None, 1, 2, 4):
        filled(one)
        with monkeypatch.context() as patched:
            calls = itertools.count(1)
            for name in ("delete", "delete_folder"):
                patched.setattr(ObjectStore, name, dying(getattr(ObjectStore, name), calls, die_at))
            code, _ = command(gc_command, one, capfd, keep_runs=1, dry_run=False)
        assert code == (0 if die_at is None else 130)
        assert {planned.status for planned in plan(one, chain(value=5)).values()} == {"reused"}
        gc(one, capfd)
        left.append({re.sub("/[0-9a-f]{8}/", "/", name) for name in objects_of(one).sizes("")})
    assert all(one == left[0] for one in left) and left[0]


def test_gc_keeps_what_a_run_on_another_machine_is_at(
    machines: tuple[Store, Store], capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = machines
    key = plan(one, step("top"))["top"].key
    process = {"host": "elsewhere", "pid": 1, "started": "1"}
    runs.save(one, record(one, "20260101-000001-aaaaaa", planned={"top": key}, process=process, renewed_at=time.time()))
    objects_of(one).write(f"artifacts/top/{key}/0badbeef/half", b"x")
    (one.work_folder("top", key) / "checkpoint").write_text("x")
    one.mirror.push(one.work_folder("top", key))
    assert gc(other, capfd, keep_runs=0)["removed"] == []


def test_gc_keeps_what_is_registered_in_the_mlflow_file_of_another_machine(
    machines: tuple[Store, Store], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machines
    manifest = run(one, step("top"))["top"]
    record_ = {"type": "model", "path": "model", "registered_name": "m", "alias": None}
    where = Destination(uri=f"sqlite:///{one.root}/mlflow.db", experiment="x", artifact_location=None)
    with monkeypatch.context() as patched:
        patched.setattr("socket.gethostname", lambda: "elsewhere")
        Delivered.load(one.root, where, one.objects).add([{**manifest, "records": []}], {"r1/top": "1"})
    assert [item["kind"] for item in gc(other, capfd, keep_runs=0, dry_run=True)["removed"]] == ["artifact"]
    name = f"artifacts/top/{manifest['key']}/manifest.json"
    objects_of(one).write(name, json.dumps(sealed({**manifest, "records": [record_]})).encode())
    assert gc(other, capfd, keep_runs=0)["removed"] == []
