"""A root on an object store, as two machines see it: two local folders before a real S3 server on this machine."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from infra.errors import DamagedArtifactError, UserError
from infra.journal import runs
from infra.journal.acceptance import accept, acceptance_key, accepted_key
from infra.journal.plan import PlannedStep, artifact_of, make_plan
from infra.journal.process import ProcessIdentity
from infra.journal.runs import RunRecord
from infra.journal.step import Artifact, Step
from infra.journal.worker import Failure, Job, run_job
from infra.storage.manifest import sealed
from infra.storage.objects import ObjectStore
from infra.storage.store import Store
from infra.tracking.client import NullSink, StepTracker
from infra.tracking.delivered import Delivered
from infra.tracking.tracker import Destination
from pipelines.cli.doctor import doctor_command
from pipelines.cli.gc import gc_command
from pipelines.cli.status import status_command
from tests.infra.toy_steps import ToyConfig, step

CLUSTER = {"CPU": 2.0, "GPU": 0.0}


@pytest.fixture
def machines(s3_uri: str, tmp_path: Path) -> tuple[Store, Store]:
    return Store.open(s3_uri, str(tmp_path / "a")), Store.open(s3_uri, str(tmp_path / "b"))


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


def test_another_machine_reuses_all_and_fetches_only_what_a_step_takes(machines: tuple[Store, Store]) -> None:
    one, other = machines
    made = run(one)
    assert set(made) == {"top", "middle", "bottom"}
    kinds = {name.partition("/")[0] for name in objects_of(one).sizes("")}
    assert kinds == {"artifacts"}  # no work is left, and nothing of this machine alone
    found = plan(other)
    assert {planned.status for planned in found.values()} == {"reused"}
    assert files(other.root) == {"stands_for"}
    assert {name: planned.manifest for name, planned in found.items()} == made
    assert set(run(other, chain(value=5))) == {"bottom"}
    assert not list((other.root / "artifacts").glob("top/*")) and list((other.root / "artifacts").glob("middle/*"))
    assert set(run(one, chain(value=5))) == set()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda objects, name: objects.delete(name), "is missing or has another size than its manifest says"),
        (lambda objects, name: objects.write(name, b""), "is missing or has another size than its manifest says"),
        (lambda objects, name: objects.write(name, b"7"), None),
        (lambda objects, name: objects.write(name.split("/total")[0].rpartition("/")[0] + "/manifest.json", b"{"), "{"),
    ],
    ids=["deleted", "truncated", "changed", "manifest"],
)
def test_a_damaged_object_is_named_and_its_step_alone_runs_again(
    machines: tuple[Store, Store], damage: Callable[[ObjectStore, str], None], told: str | None
) -> None:
    one, other = machines
    run(one)
    name = total(one)
    damage(objects_of(one), name)
    if told is None:  # sizes do not tell; the step that takes it compares digests
        told = "differs from its manifest (SHA-256)"
        (failure,) = run(other, chain(value=5)).values()
        assert f"{other.uri}/{name} {told}" in failure.message and failure.fault.value == 3 and not failure.retry
    else:
        told = told if told != "{" else "is missing or damaged"
    (reason,) = plan(other)["middle"].reasons
    assert reason.startswith("its artifact is damaged: s3://") and told in reason
    assert set(run(other)) == {"middle"}
    assert {planned.status for planned in plan(one).values()} == {"reused"}
    left = [name for name in objects_of(one).sizes("") if "/middle/" in name]
    assert len(left) == (3 if told == "is missing or damaged" else 2)  # of the damaged one nothing, where it is known


def test_two_clusters_that_make_one_step_at_once_leave_one_whole(
    machines: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machines
    content = run(one)["middle"]
    key, objects = content["key"], objects_of(one)
    objects.delete_folder("artifacts/middle")
    folder = one.artifact_folder("middle", key)
    first, second = ({**content, "attempt": attempt} for attempt in ("aaaaaaaa", "bbbbbbbb"))
    upload = ObjectStore.upload

    def slowly(self: ObjectStore, source: Path, names: list[str], prefix: str) -> None:
        upload(self, source, names, prefix)
        if prefix.endswith("/aaaaaaaa"):  # the other is as far, and both write their manifests now
            commit(other, folder, key, second)

    monkeypatch.setattr(ObjectStore, "upload", slowly)
    commit(one, folder, key, first)
    assert other.find("middle", key) is not None


def commit(store: Store, folder: Path, key: str, content: dict[str, Any]) -> None:
    """Uploads the artifact in `folder` as the attempt that `content` names."""
    (folder / "manifest.json").write_text(json.dumps(sealed(content)))
    store.mirror.commit(folder, "middle", key, content)


def test_a_damaged_copy_is_fetched_again(machines: tuple[Store, Store], caplog: pytest.LogCaptureFixture) -> None:
    one, _ = machines
    key = run(one)["middle"]["key"]
    (one.artifact_folder("middle", key) / "total.txt").write_text("7")
    with caplog.at_level(logging.WARNING):
        made = run(one, chain(value=5))
    assert made["bottom"]["metrics"]["total"] == 7 and "a damaged copy is fetched again" in caplog.text
    assert (one.fetch("middle", key) / "total.txt").read_text() == "2"


def test_what_is_gone_between_the_plan_and_the_use_is_no_artifact(machines: tuple[Store, Store]) -> None:
    one, other = machines
    key = run(one)["middle"]["key"]
    objects_of(one).delete_folder("artifacts/middle")
    with pytest.raises(DamagedArtifactError, match=rf"{one.uri}/artifacts/middle/{key}/manifest.json is missing"):
        other.fetch("middle", key)


def test_what_a_killed_attempt_left_in_its_work_folder_is_gone_on_with(machines: tuple[Store, Store]) -> None:
    one, other = machines
    work = one.work_folder("top", "1" * 32)
    (work / "units" / "u1").mkdir(parents=True)
    (work / "units" / "u1" / "result.json").write_text("{}")
    one.mirror.push(work / "units" / "u1", last="result.json")
    there = other.work_folder("top", "1" * 32) / "units"
    assert other.mirror.names(there, "result.json") == ["u1"]
    other.mirror.pull(there / "u1")
    assert (there / "u1" / "result.json").read_text() == "{}"
    other.mirror.drop(there / "u1" / "result.json")
    assert objects_of(one).sizes("work") == {}


def test_a_store_that_goes_away_under_a_step_loses_nothing(
    machines: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = machines
    here = os.environ["AWS_ENDPOINT_URL"]
    (failure,) = run(one, step("top", ToyConfig(fail="away"))).values()
    assert failure.fault.value == 3 and failure.retry and failure.message.startswith(f"{one.uri}/artifacts/top/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", here)
    assert run(one, step("top"))["top"]["measured"]["attempts"] == 2  # it went on from its work folder
    assert not list((one.root / "temporary").iterdir()) and objects_of(one).sizes("work") == {}


def test_a_root_that_was_copied_to_the_object_store_is_one(
    machines: tuple[Store, Store], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one, _ = machines
    own = Store.open(str(tmp_path / "own"))
    made = run(own)
    objects_of(one).upload(own.root / "artifacts", sorted(files(own.root / "artifacts")), "artifacts")
    assert {planned.status for planned in plan(one).values()} == {"reused"}
    other = run(one, chain(value=5))["bottom"]
    assert other["metrics"]["total"] == 7
    runs.save(one, record(one, "20260101-000001-aaaaaa", status="FINISHED", planned=keys(plan(one))))
    assert [item["name"] for item in gc(one, capfd)["removed"]] == [f"bottom/{other['key']}"]
    objects_of(one).write(f"artifacts/middle/{made['middle']['key']}/total.txt", b"7")
    assert command(doctor_command, one, capfd, verify=True)[0] == 3
    assert set(run(one)) == {"middle"}


def record(store: Store, run_id: str, **more: Any) -> RunRecord:
    facts = {
        "pipeline": "toy",
        "status": "RUNNING",
        "started_at": 1.0,
        "root": store.uri,
        "tracking_uri": "sqlite:///x",
    }
    return RunRecord.model_validate({"id": run_id, "process": ProcessIdentity.current().to_json(), **facts, **more})


def test_every_machine_sees_every_run_and_the_dead_are_closed_where_they_were_tracked(
    machines: tuple[Store, Store],
) -> None:
    one, other = machines
    gone = {**ProcessIdentity.current().to_json(), "started": "long ago"}
    runs.save(one, record(one, "20260101-000001-aaaaaa", process=gone))
    runs.save(other, record(other, "20260101-000002-bbbbbb"))
    assert [(r.id[:15], r.status) for r in runs.load_all(one)] == [
        ("20260101-000002", "RUNNING"),
        ("20260101-000001", "RUNNING"),
    ]
    assert [r.id for r in runs.close_dead(other)] == ["20260101-000001-aaaaaa"]
    assert [r.status for r in runs.load_all(one)] == ["RUNNING", "KILLED"]
    assert [r.id for r in runs.close_dead(one)] == ["20260101-000001-aaaaaa"]  # for its own MLflow store
    assert (one.root / "spool" / "20260101-000001-aaaaaa.jsonl").exists()
    assert runs.close_dead(one) == [] and runs.close_dead(other) == []


def test_an_acceptance_counts_on_every_machine(machines: tuple[Store, Store]) -> None:
    one, other = machines
    run(one, step("top"))
    (old,) = one.manifests("top")
    planned = plan(one, replace(step("top"), version=2))["top"]
    accept(one, "top", acceptance_key(planned.step, planned.identity), old, ["a change"], "the same")
    assert accepted_key(other, planned.step, planned.identity) == old["key"]
    assert plan(other, replace(step("top"), version=2))["top"].status == "reused"


def command(work: Callable[..., Any], store: Store, capfd: pytest.CaptureFixture[str], **options: Any) -> Any:
    """The exit code and the JSON document of a command."""
    capfd.readouterr()
    with pytest.raises(typer.Exit) as ended:
        work("llm", [f"storage.root={store.uri}", f"storage.local={store.root}"], as_json=True, **options)
    return ended.value.exit_code, json.loads(capfd.readouterr().out)


def test_doctor_compares_every_object_and_what_it_finds_is_made_again(
    machines: tuple[Store, Store], capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = machines
    run(one)
    code, told = command(doctor_command, other, capfd, verify=True)
    assert code == 0 and "3, " in next(c["detail"] for c in told["checks"] if c["name"] == "artifacts")
    objects_of(one).write(total(one), b"7")
    code, told = command(doctor_command, other, capfd, verify=True)
    assert code == 3 and any(f"{one.uri}/{total(one)} differs from its manifest" in line for line in told["errors"])
    assert set(run(one)) == {"middle"}
    assert command(doctor_command, other, capfd, verify=True)[0] == 0


def gc(store: Store, capfd: pytest.CaptureFixture[str], **options: Any) -> dict[str, Any]:
    code, told = command(gc_command, store, capfd, **{"keep_runs": 1, "dry_run": False, **options})
    assert code == 0, told
    return dict(told)


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


def keys(planned: dict[str, PlannedStep]) -> dict[str, str]:
    return {name: one.key for name, one in planned.items()}


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


def test_wrong_places_are_refused_in_one_line(
    s3_uri: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.open(s3_uri, str(tmp_path / "a"))
    Store.open(str(tmp_path / "own"))
    for root, local, told in (
        (s3_uri + "2", "a", "storage.local: .* stands for s3://"),
        (s3_uri, "own", "storage.local: .* is a root of its own"),
        (str(tmp_path), "a", "storage.local=.*: only for a root on an object store"),
        ("s4://bucket/x", "c", "storage.root: s4://bucket/x is not s3://BUCKET"),
        ("s3:/bucket/x", "c", "storage.root: s3:/bucket/x is not s3://BUCKET"),
        ("s3://no-such-bucket/x", "c", "storage.root: the bucket of s3://no-such-bucket/x does not exist"),
    ):
        with pytest.raises(UserError, match=told):
            Store.open(root, str(tmp_path / local))
    assert not (tmp_path / "c").exists()
    store = Store.open(s3_uri, str(tmp_path / "a"))
    runs.save(store, record(store, "20260101-000001-aaaaaa", status="FINISHED"))
    before = files(store.root)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    code, told_ = command(status_command, store, capfd)
    assert code == 3 and len(told_["errors"]) == 1 and s3_uri in told_["errors"][0]
    assert files(store.root) == before and time.monotonic() - started < 30
