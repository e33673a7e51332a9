"""What `gc` keeps and what it takes away. Real MLflow on SQLite, steps and their delivery without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import InfrastructureError, LockedError
from infra.journal import garbage, runs
from infra.journal.acceptance import accept
from infra.journal.garbage import Survey
from infra.journal.lock import alone, working
from infra.journal.plan import make_plan
from infra.storage.store import Store
from infra.tracking.delivered import Delivered
from infra.tracking.garbage import stores_of
from infra.tracking.lineage import reach
from infra.tracking.spool import Spool
from infra.tracking.tracker import Destination
from infra.tracking.writer import ID_TAG, URI_TAG
from pipelines.session import deliver
from tests.infra.toy_root import CLUSTER, ToyRoot, checkpointed, training
from tests.infra.toy_steps import ToyConfig, step


@pytest.fixture
def root(tmp_path: Path, empty_mlflow: Path) -> ToyRoot:
    return ToyRoot(tmp_path / "root", database=empty_mlflow)


def pipeline(value: int) -> Any:
    """data -> train -> last; only `data` is the same for every value."""
    return step("last", train=training("train", ToyConfig(value=value), data=step("data")))


def survey(root: ToyRoot, keep_runs: int = 1) -> Survey:
    return garbage.survey(root.store, stores_of(root.store.root, root.destination), keep_runs)


def gc(root: ToyRoot, keep_runs: int = 1) -> Survey:
    found = survey(root, keep_runs)
    assert tuple(garbage.remove(root.store, found)) == found.items
    return found


def names(found: Survey, kind: str) -> set[str]:
    return {item.name for item in found.items if item.kind == kind}


def active_models(root: ToyRoot) -> set[str]:
    writer = root.writer
    return {model.tags[ID_TAG] for model in writer.client.search_logged_models([writer.experiment_id])}


def test_what_the_last_run_needs_stays_and_the_rest_goes_from_storage_and_mlflow(root: ToyRoot) -> None:
    old, new = root.run(pipeline(1)), root.run(pipeline(2))
    first, second = (record.id for record in sorted(runs.load_all(root.store), key=lambda record: record.id))
    found = gc(root)
    assert names(found, "artifact") == {f"train/{old['train']}", f"last/{old['last']}"}
    assert root.artifacts() == {f"{name}/{key}" for name, key in new.items()}
    left = (
        {first, f"{first}/data", f"{first}/data/t0"}
        | {second}
        | {f"{second}/{name}" for name in ("train", "train/t0", "last", "last/t0")}
    )
    assert root.own_ids() == left  # the first run stays with the step that it made for the second
    assert active_models(root) == {f"{new['train']}/model"}
    assert names(found, "run record") == set() and found.num_kept == 3
    assert set(Delivered.load(root.store.root, root.destination).run_ids) == set(new.values())
    assert survey(root).items == ()


def test_the_plan_says_of_what_was_removed_that_it_was_there(root: ToyRoot) -> None:
    root.run(step("data"))
    assert gc(root, keep_runs=0).num_kept == 0
    root.run(step("other"))
    root.run(step("last"))
    gc(root, keep_runs=2)
    shutil.rmtree(root.store.artifact_folder("last", next(runs.load_all(root.store)).planned["last"]))
    told = [make_plan([step(name)], root.store, CLUSTER)[0].reasons[0] for name in ("last", "data")]
    run = next(runs.load_all(root.store)).id
    assert told == [f"its artifact is gone: run {run} had it", "has never been made here"]


def test_a_database_and_its_files_hold_nothing_more_of_what_was_removed(root: ToyRoot) -> None:
    old = root.run(pipeline(1))
    root.run(step("other"))
    before = root.content()
    gc(root)
    after = root.content()
    assert not any(key in row for key in old.values() for name in ("tags", "runs") for row in after["tables"][name])
    assert len(after["tables"]["runs"]) == 3 and len(before["tables"]["runs"]) == 10  # with trials and pipeline runs
    assert after["tables"]["logged_models"] == [] and len(before["tables"]["logged_models"]) == 1
    assert len(list((root.store.root / "mlartifacts").iterdir())) == 2


def test_the_champions_whole_ancestry_stays_and_what_was_made_from_it_goes(root: ToyRoot) -> None:
    old = root.run(pipeline(1))
    root.register("classifier", old["train"], alias="champion")
    root.run(step("other"))
    found = gc(root)
    assert names(found, "artifact") == {f"last/{old['last']}"}
    assert {f"train/{old['train']}", f"data/{old['data']}"} <= root.artifacts()
    assert active_models(root) == {f"{old['train']}/model"}


@pytest.mark.parametrize("damage", ["manifest", "folder"])
def test_the_ancestry_of_an_artifact_that_is_damaged_or_gone_stays(root: ToyRoot, damage: str) -> None:
    """Its manifest cannot be read, but MLflow knows its inputs."""
    old = root.run(pipeline(1))
    root.register("classifier", old["train"])
    root.run(step("other"))
    folder = root.store.artifact_folder("train", old["train"])
    shutil.rmtree(folder) if damage == "folder" else (folder / "manifest.json").write_text("{")
    gc(root)
    assert f"data/{old['data']}" in root.artifacts()


def test_every_version_counts_and_so_does_what_somebody_registered_by_hand(root: ToyRoot, tmp_path: Path) -> None:
    keys = [root.run(training("train", ToyConfig(value=value)))["train"] for value in range(5)]
    root.register("classifier", keys[0])
    root.register("classifier", keys[1], alias="champion")
    client = root.writer.client
    models = {model.tags["fromzero.key"]: model for model in client.search_logged_models(["1"])}
    client.create_registered_model("by-hand")
    client.create_model_version("by-hand", str(root.store.artifact_folder("train", keys[2]) / "model"))
    client.create_model_version("by-hand", str(tmp_path), run_id=models[keys[3]].source_run_id)
    client.create_model_version("by-hand", f"models:/{models[keys[4]].model_id}")
    client._tracking_client.store._hard_delete_run(models[keys[4]].source_run_id)  # as `mlflow gc` does
    root.run(step("other"))
    assert names(gc(root), "artifact") == set()


def test_a_registered_prompt_keeps_what_chose_it(root: ToyRoot) -> None:
    keys = root.run(pipeline(1))
    record = {"type": "prompt", "name": "toy", "template": "{{text}}"}
    run = f"{next(runs.load_all(root.store)).id}/last"
    root.writer.apply({"kind": "prompt", "id": run, "key": keys["last"], "record": record})
    root.run(step("other"))
    assert names(gc(root), "artifact") == set()


def test_an_accepted_result_stays(root: ToyRoot) -> None:
    old = root.run(step("data"))
    manifest = next(root.store.manifests("data"))
    accept(root.store, "data", "0" * 32, manifest, [], "a rename")
    root.run(step("other"))
    assert names(gc(root), "artifact") == set()
    (root.store.root / "accepted" / "data" / f"{'0' * 32}.json").unlink()
    assert names(gc(root), "artifact") == {f"data/{old['data']}"}


def test_what_waits_for_its_delivery_stays(root: ToyRoot) -> None:
    old = root.run(step("data"))
    root.run(step("other"))
    spool = Spool(root.store.root / "spool" / "20250101-000000-bbbbbb.jsonl")
    spool.append({"kind": "tags", "id": "20250101-000000-bbbbbb/data", "tags": {"fromzero.key": old["data"]}})
    assert survey(root).items == ()
    spool.remove()
    assert names(survey(root), "artifact") == {f"data/{old['data']}"}


def test_checkpoints_of_a_run_that_was_killed_stay_while_it_is_one_of_the_last(root: ToyRoot) -> None:
    """Its record says nothing of steps, because it had no time to."""
    for name in ("old", "new"):
        root.killed(f"20260101-00000{'on'.index(name[0])}-kkkkkk", {"train": name[0].encode().hex() * 16})
        (root.store.work_folder("train", name[0].encode().hex() * 16) / "checkpoint").write_bytes(bytes(1000))
    found = gc(root)
    assert names(found, "work folder") == {f"train/{'6f' * 16}"}
    assert names(found, "run record") == {"20260101-000000-kkkkkk"}
    assert found.items[0].num_bytes == 1000
    assert [path.name for path in (root.store.root / "work" / "train").iterdir()] == ["6e" * 16]


def test_a_work_folder_goes_when_its_step_is_finished_but_not_while_its_artifact_is_damaged(root: ToyRoot) -> None:
    keys = root.run(step("data"))
    (root.store.work_folder("data", keys["data"]) / "rest").write_text("x")
    path = root.store.artifact_folder("data", keys["data"]) / "total.txt"
    path.write_text("9")
    assert survey(root).items == ()
    path.write_text("1")
    assert [(item.kind, item.reason) for item in gc(root).items] == [("work folder", "its step is finished")]


def test_checkpoints_on_record_stay_when_their_step_is_finished_and_go_with_it(root: ToyRoot) -> None:
    keys = root.run(checkpointed("train"))
    work = root.store.work_folder("train", keys["train"])
    writer = root.writer
    (found,) = [one for one in writer.client.search_logged_models([writer.experiment_id]) if one.name == "best"]
    assert found.tags[URI_TAG] == str(work / "checkpoints" / "step_2")
    left = [path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file()]
    assert left == ["checkpoints/step_2/manifest.json"]
    assert gc(root).items == ()
    (work / "rest").write_text("of a commit that was killed")
    assert [(item.reason, item.paths) for item in gc(root).items] == [("its step is finished", (work / "rest",))]
    gone = gc(root, keep_runs=0)
    assert {f"train/{keys['train']}"} == names(gone, "work folder") == names(gone, "artifact")
    assert [item.name for item in gone.items if item.kind == "mlflow model"] == [f"{keys['train']}/checkpoints/step_2"]
    assert not work.exists()


def test_rubbish_of_killed_attempts_and_damaged_folders_that_were_set_aside_go(root: ToyRoot) -> None:
    keys = root.run(step("data"))
    (root.store.begin("train", "1" * 32) / "half").write_bytes(bytes(10))
    aside = root.store.set_aside("data", keys["data"])
    assert aside is not None
    reasons = {item.name.partition("-")[0]: item.reason for item in gc(root).items}
    assert reasons == {"train": "rubbish of a killed attempt", "damaged": "a damaged artifact that was set aside"}
    assert list((root.store.root / "temporary").iterdir()) == []


def test_failed_attempts_go_with_their_pipeline_run_when_they_are_old(root: ToyRoot) -> None:
    root.run(step("bad", ToyConfig(fail="user")))
    failed = next(runs.load_all(root.store)).id
    assert survey(root).items == ()
    root.run(step("data"))
    found = gc(root)
    assert names(found, "mlflow run") == {failed, f"{failed}/bad"} and names(found, "run record") == {failed}
    assert {own_id.split("/")[0] for own_id in root.own_ids()} == {next(runs.load_all(root.store)).id}


def test_hard_links_count_once_and_only_where_the_last_name_goes(root: ToyRoot) -> None:
    old, new = root.run(training("train")), root.run(training("train", ToyConfig(value=2)))
    root.register("classifier", new["train"])
    weights = root.store.artifact_folder("train", old["train"]) / "model" / "weights"
    twin = root.store.begin("train", "1" * 32) / "weights"
    twin.hardlink_to(weights)
    sizes = {item.kind: item.num_bytes for item in survey(root).items}
    assert sizes["artifact"] > 100_000 and sizes["rubbish"] == 0
    twin.unlink()
    (root.store.artifact_folder("train", new["train"]) / "twin").hardlink_to(weights)
    assert {item.kind: item.num_bytes for item in survey(root).items}["artifact"] < 10_000


def test_another_roots_runs_in_the_same_store_are_not_touched(root: ToyRoot, tmp_path: Path) -> None:
    other = ToyRoot(tmp_path / "other", uri=root.destination.uri)
    theirs = other.run(pipeline(5), run_id="20260101-000009-bbbbbb")
    root.run(pipeline(1))
    root.run(step("last"))
    gc(root, keep_runs=0)
    assert not root.artifacts()
    assert {own_id.split("/")[0] for own_id in root.own_ids()} == {"20260101-000009-bbbbbb"}
    assert len(root.own_ids()) == 7 and active_models(root) == {f"{theirs['train']}/model"}


def test_a_copied_root_touches_nothing_of_the_one_that_it_was_copied_from(root: ToyRoot, tmp_path: Path) -> None:
    root.run(pipeline(1))
    root.run(step("bad", ToyConfig(fail="user")))
    before = root.content()
    copy = ToyRoot(Path(shutil.copytree(root.store.root, tmp_path / "copy")), uri=root.destination.uri)
    found = gc(copy, keep_runs=0)
    assert names(found, "mlflow run") == names(found, "mlflow model") == set() and not copy.artifacts()
    assert root.content() == before


def test_a_root_without_mlflow_is_cleaned_all_the_same(tmp_path: Path) -> None:
    root = ToyRoot(tmp_path)
    root.killed("20260101-000000-kkkkkk", {})
    (root.store.begin("train", "1" * 32) / "half").write_bytes(bytes(10))
    assert [item.kind for item in gc(root).items] == ["rubbish"]
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_that_is_away_or_another_one_than_before_removes_nothing(
    root: ToyRoot, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root.run(pipeline(1))
    root.run(step("other"))
    away = Destination(uri="http://127.0.0.1:9", experiment="fromzero", artifact_location=None)
    with pytest.raises(InfrastructureError, match=r"http://127\.0\.0\.1:9 failed: .*; nothing was removed"):
        stores_of(root.store.root, away)[0].read()
    shutil.copy(empty_mlflow, root.store.root / "mlflow.db")
    with pytest.raises(InfrastructureError, match=r"is not the store that .* fromzero sync fills the new one"):
        stores_of(root.store.root, root.destination)


def test_every_store_that_the_root_was_delivered_to_is_asked(
    root: ToyRoot, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The champion is in the first store; the second knows nothing of it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    old = root.run(training("train"))
    root.register("classifier", old["train"], alias="champion")
    second = ToyRoot(root.store.root, uri=f"sqlite:///{shutil.copy(empty_mlflow, root.store.root / 'second.db')}")
    second.run(step("other"))
    assert survey(second).items == ()
    (tracking,) = (one.path for one in Delivered.everywhere(root.store.root) if one.uri == root.destination.uri)
    tracking.write_text(json.dumps({**json.loads(tracking.read_text()), "uri": "http://127.0.0.1:9"}))
    with pytest.raises(InfrastructureError, match=rf"if it is gone for good, remove {tracking}"):
        survey(second)


@pytest.mark.parametrize("state", ["is not there", "is not the store that it was"])
def test_a_database_on_a_disk_that_is_away_removes_nothing(root: ToyRoot, empty_mlflow: Path, state: str) -> None:
    old = root.run(training("train"))
    root.register("classifier", old["train"], alias="champion")
    first = root.destination.database
    assert first is not None
    second = ToyRoot(root.store.root, uri=f"sqlite:///{shutil.copy(empty_mlflow, root.store.root / 'second.db')}")
    second.run(step("other"))
    away = first.rename(first.with_suffix(".away"))
    if state != "is not there":
        shutil.copy(empty_mlflow, first)
    with pytest.raises(InfrastructureError, match=rf"{first} {state}, .* nothing was removed\. Bring it back"):
        survey(second)
    away.rename(first)
    assert survey(second).items == ()


def test_a_root_that_was_moved_is_cleaned(root: ToyRoot, tmp_path: Path) -> None:
    """What its database was called before is no store that is away."""
    root.run(training("train"))
    moved = ToyRoot(root.store.root.rename(tmp_path / "moved"))
    assert survey(moved).items == ()


def test_what_is_no_artifact_is_somebody_elses(root: ToyRoot) -> None:
    root.run(step("data"))
    for place in ("data/backup", "MyStep/" + "a" * 32):
        (root.store.root / "artifacts" / place).mkdir(parents=True)
    gc(root)
    assert (root.store.root / "artifacts" / "data" / "backup").is_dir()
    assert (root.store.root / "artifacts" / "MyStep" / ("a" * 32)).is_dir()


def test_a_copy_of_a_run_record_is_passed_over(root: ToyRoot) -> None:
    root.run(step("data"))
    root.run(step("other"))
    for path in list((root.store.root / "runs").glob("*.json")):
        shutil.copy(path, path.with_suffix(".bak.json"))
    assert len(list(runs.load_all(root.store))) == 2
    gc(root)


def test_halves_of_files_go(root: ToyRoot) -> None:
    root.run(step("data"))
    half = root.store.root / "runs" / ".20261126-120000-abcdef.json.0123abcd"
    half.write_text("{")
    assert names(gc(root), "rubbish") == {half.name} and not half.exists()


def test_a_model_that_gc_took_before_it_was_killed_comes_back_with_the_next_delivery(root: ToyRoot) -> None:
    """Between the LoggedModel and its run: the run is still there, and says that the step was delivered."""
    root.run(training("train"))
    manifest = next(root.store.manifests("train"))
    root.run(step("other"))
    found = survey(root)
    removal = garbage.remove(root.store, found)
    assert next(removal).kind == "mlflow model"
    removal.close()
    assert not Delivered.load(root.store.root, root.destination).has([manifest]) and active_models(root) == set()
    assert deliver(root.store, root.destination, [], [manifest]).complete
    assert active_models(root) == {f"{manifest['key']}/model"}
    assert Delivered.load(root.store.root, root.destination).has([manifest])


def test_gc_works_alone_and_others_together(tmp_path: Path) -> None:
    Store.open(str(tmp_path))
    refused = pytest.raises(LockedError, match=r"is in use by process \d+")
    with working(tmp_path), working(tmp_path), refused, alone(tmp_path):
        pass
    refused = pytest.raises(LockedError, match=r"being removed by process \d+")
    with alone(tmp_path), refused, working(tmp_path):
        pass


def test_a_step_that_outlives_its_run_keeps_gc_away_and_does_not_begin_beside_it(root: ToyRoot) -> None:
    with alone(root.store.root):
        root.run(step("data"))
    (record,) = runs.load_all(root.store)
    assert record.steps[0].status == "failed" and "being removed by process" in record.steps[0].reasons[0]


GRAPHS = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n), st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))), st.sets(st.integers(0, n - 1))
    )
)


@given(GRAPHS)
def test_what_is_kept_is_closed_under_inputs_and_nothing_more(graph: tuple[int, set[Any], set[int]]) -> None:
    """Against the powers of the relation, for any graph, cycles too."""
    number, edges, starts = graph
    expected = set(starts)
    for _ in range(number):
        expected |= {target for source, target in edges if source in expected}
    assert reach(map(str, starts), [(str(a), str(b)) for a, b in edges]) == set(map(str, expected))
