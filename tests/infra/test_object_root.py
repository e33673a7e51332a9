"""A root on an object store, as two machines see it: two local folders before a real S3 server on this machine."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.errors import DamagedArtifactError, UserError
from infra.journal import runs
from infra.journal.acceptance import accept, acceptance_key, accepted_key
from infra.journal.process import ProcessIdentity
from infra.storage.manifest import sealed
from infra.storage.objects import ObjectStore
from infra.storage.store import Store
from pipelines.cli.doctor import doctor_command
from pipelines.cli.status import status_command
from tests.infra.object_roots import chain, command, files, gc, keys, objects_of, plan, record, run, total
from tests.infra.toy_steps import ToyConfig, step


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
