"""`fromzero gc` and `fromzero doctor --verify` as a user meets them: what they print, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from infra.errors import LockedError
from infra.journal import runs
from infra.journal.lock import alone, working
from infra.journal.plan import make_plan
from infra.journal.process import ProcessIdentity
from infra.storage import manifest
from pipelines import runner
from pipelines.cli.doctor import doctor_command
from pipelines.cli.gc import gc_command
from pipelines.compose import load_config
from pipelines.runner import Prepared, execute, prepare
from tests.infra.toy_root import ToyRoot, training
from tests.infra.toy_steps import ToyConfig, step
from tests.pipelines.conftest import PROJECT, run_cli

Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def root(tmp_path: Path, empty_mlflow: Path) -> ToyRoot:
    return ToyRoot(tmp_path / "root", database=empty_mlflow)


@pytest.fixture
def gc(root: ToyRoot, capfd: pytest.CaptureFixture[str]) -> Command:
    """`gc(...)`: its exit code, and its JSON document or its lines."""

    def run(*more: str, as_json: bool = True, dry_run: bool = False, keep_runs: int = 1) -> tuple[int, Any]:
        capfd.readouterr()
        overrides = [f"storage.root={root.store.root}", *more]
        with pytest.raises(typer.Exit) as ended:
            gc_command("llm", overrides, keep_runs=keep_runs, dry_run=dry_run, as_json=as_json)
        out = capfd.readouterr().out
        return ended.value.exit_code, json.loads(out) if as_json else [line.rstrip() for line in out.splitlines()]

    return run


def test_a_dry_run_tells_what_gc_then_does_and_removes_nothing(root: ToyRoot, gc: Command) -> None:
    old = root.run(step("last", train=training("train")))
    root.run(step("other"))
    before = root.content()
    code, told = gc(dry_run=True)
    assert code == 0 and root.content() == before
    assert set(told) == {"root", "kept", "removed", "num_bytes", "dry_run", "errors"}
    assert (told["root"], told["kept"], told["dry_run"], told["errors"]) == (str(root.store.root), 1, True, [])
    assert [one["kind"] for one in told["removed"]] == [
        *("mlflow model", "mlflow run", "mlflow run", "mlflow run", "artifact", "artifact", "run record")
    ]
    artifact = next(one for one in told["removed"] if one["name"] == f"train/{old['train']}")
    assert artifact["num_bytes"] > 100_000
    assert artifact["reason"] == "needed by no registered model or prompt, and not by the last run"
    assert told["num_bytes"] == sum(one["num_bytes"] for one in told["removed"])
    code, done = gc()
    assert (code, {**done, "dry_run": True}) == (0, told)
    assert gc() == (0, {**told, "removed": [], "num_bytes": 0, "dry_run": False})


def test_the_text_is_a_table_and_a_total_and_one_line_where_nothing_goes(root: ToyRoot, gc: Command) -> None:
    old = root.run(step("last"))
    code, (line,) = gc(as_json=False)
    assert (code, line) == (0, f"nothing to remove under {root.store.root}; artifacts there: 1")
    code, lines = gc(as_json=False, dry_run=True, keep_runs=0)
    assert lines[0].split() == ["what", "name", "size", "why", "it", "goes"]
    row = next(line for line in lines if line.startswith("artifact"))
    assert row.split()[1] == f"last/{old['last'][:12]}" and row.endswith("needed by no registered model or prompt")
    assert lines[-2].startswith("4 in all, ") and lines[-2].endswith(", would be removed")


@pytest.mark.parametrize("dry_run", [True, False])
def test_gc_refuses_while_a_run_goes_on_and_names_it(root: ToyRoot, gc: Command, dry_run: bool) -> None:
    root.run(step("last"))
    record = next(runs.load_all(root.store))
    runs.save(root.store, record.model_copy(update={"status": "RUNNING"}))
    before = root.content()
    with working(root.store.root):
        code, told = gc(dry_run=dry_run, keep_runs=0)
    assert code == 3 and root.content() == before
    assert told["errors"][0].startswith(f"run {record.id} ({ProcessIdentity.current()}) is going on under")


def test_gc_refuses_while_another_command_works_here_and_names_its_process(root: ToyRoot, gc: Command) -> None:
    with working(root.store.root):
        code, told = gc()
    assert code == 3 and f"is in use by process {os.getpid()} on" in told["errors"][0]


def test_a_run_and_a_sync_refuse_while_gc_works(root: ToyRoot, tmp_path: Path) -> None:
    config = load_config("smoke", [f"storage.root={root.store.root}"])
    prepared = prepare("smoke", config)
    with alone(root.store.root):
        with pytest.raises(LockedError, match=rf"being removed by process {os.getpid()} on .*; wait for it"):
            execute(prepared, _Silent())
        done = run_cli("sync", "--json", f"storage.root={root.store.root}", cwd=tmp_path)
    assert done.code == 3 and f"being removed by process {os.getpid()}" in done.json["errors"][0]
    assert not list((root.store.root / "runs").iterdir())


def test_a_run_that_was_planned_before_gc_took_what_it_reuses_is_planned_again(
    root: ToyRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = root.run(step("last"))
    prepared = Prepared(
        pipeline="smoke",
        config=load_config("smoke", [f"storage.root={root.store.root}"]),
        store=root.store,
        plan=make_plan([step("last")], root.store, {"CPU": 2.0}),
        cluster={"CPU": 2.0},
    )
    root.store.remove(root.store.artifact_folder("last", keys["last"]))
    monkeypatch.setattr(runner, "prepare", lambda *_, **__: pytest.fail("planned again"))
    with pytest.raises(pytest.fail.Exception, match="planned again"):
        execute(prepared, _Silent())


class _Silent:
    def started(self, *arguments: Any) -> None: ...
    def ended(self, *arguments: Any) -> None: ...
    def tick(self, *arguments: Any) -> None: ...
    def say(self, line: str) -> None: ...


def test_mlflow_away_is_exit_3_and_nothing_is_removed(
    root: ToyRoot, gc: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    root.run(step("last"))
    before = root.content()
    code, told = gc("tracking.uri=http://127.0.0.1:9", keep_runs=0)
    assert code == 3 and "http://127.0.0.1:9" in told["errors"][0] and "nothing was removed" in told["errors"][0]
    assert told["removed"] == [] and root.content() == before


@pytest.mark.slow
def test_killed_at_any_point_and_repeated_it_ends_in_the_same_state(tmp_path: Path, empty_mlflow: Path) -> None:
    """A sample of the points; all with `python -m tests.pipelines.gc_killer FOLDER EMPTY_DATABASE`."""
    points = ["1", "3", "8", "20", "30", "39"]
    command = [sys.executable, "-m", "tests.pipelines.gc_killer", str(tmp_path), str(empty_mlflow), *points]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one for one in found if not (one["killed"] and one["same"] and not one["problems"])] == []
    assert [one["point"] for one in found] == list(map(int, points)) and found[0]["of"] >= 40


@pytest.fixture
def doctor(root: ToyRoot, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, str], list[str]]]:
    """`doctor(verify=...)`: its exit code, the details of its checks by name, and its errors."""

    def run(*, verify: bool) -> tuple[int, dict[str, str], list[str]]:
        capfd.readouterr()
        with pytest.raises(typer.Exit) as ended:
            doctor_command("llm", [f"storage.root={root.store.root}"], verify=verify, as_json=True)
        told = json.loads(capfd.readouterr().out)
        return ended.value.exit_code, {check["name"]: check["detail"] for check in told["checks"]}, told["errors"]

    return run


def test_doctor_reads_manifests_and_verify_reads_every_file(root: ToyRoot, doctor: Any) -> None:
    keys = root.run(step("last", train=training("train")))
    sound = "2, 100.0 kB; every file agrees with its manifest"
    assert doctor(verify=True)[:2] == (0, {**doctor(verify=False)[1], "artifacts": sound})
    (root.store.artifact_folder("train", keys["train"]) / "total.txt").write_text("9")
    code, found, errors = doctor(verify=False)
    assert (code, errors) == (0, []) and found["artifacts"] == "2, 100.0 kB; the files are compared by --verify"
    code, found, errors = doctor(verify=True)
    assert (code, len(errors)) == (3, 2) and found["artifacts"] == "2, 100.0 kB; 1 damaged or missing"


def test_verify_names_each_damaged_and_missing_thing_and_what_will_happen(root: ToyRoot, doctor: Any) -> None:
    keys = root.run(step("last", train=training("train"), data=step("data", ToyConfig(value=3))))
    keys |= root.run(step("other"))
    folders = {name: root.store.artifact_folder(name, key) for name, key in keys.items()}
    (folders["train"] / "total.txt").write_text("9")
    (folders["train"] / "model" / "weights").unlink()
    root.store.remove(folders["data"])
    (folders["other"] / "manifest.json").write_text("{")
    checkpoints = root.store.work_folder("train", "1" * 32) / "checkpoints"
    for name in ("step_0000001.a", "damaged_step_0000002.a", "step_0000003.a"):
        (checkpoints / name).mkdir(parents=True)
        (checkpoints / name / "state").write_text("good")
        if name != "step_0000003.a":  # a kill left it without manifest
            manifest.write(checkpoints / name, {})
        (checkpoints / name / "state").write_text("evil")
    told = [line.partition(": ") for line in doctor(verify=True)[2]]
    again = "; the next run that needs it makes it again"
    assert [(name, detail) for name, _, detail in told if "/" in name] == [
        (
            f"other/{keys['other'][:12]}",
            f"{folders['other']}/manifest.json is missing or damaged: Expecting property name enclosed in double "
            f"quotes: line 1 column 2 (char 1){again}",
        ),
        (
            f"data/{keys['data'][:12]}",
            f"{folders['data']} is missing, and last/{keys['last'][:12]} was made from it{again}",
        ),
        (
            f"train/{keys['train'][:12]}",
            f"{folders['train']}/model/weights is missing or has another size than its manifest says{again}",
        ),
        (f"train/{keys['train'][:12]}", f"{folders['train']}/total.txt differs from its manifest (SHA-256){again}"),
        (
            "train/111111111111",
            f"{checkpoints}/step_0000001.a/state differs from its manifest (SHA-256); "
            "its step goes on from the one before it",
        ),
    ]
    assert [(name, detail) for name, _, detail in told if "/" not in name] == [
        ("artifacts", "2, 100.0 kB; 3 damaged or missing"),
        ("checkpoints", "1, 4 bytes; 1 damaged or missing"),
    ]
