"""Runs beside one another: of those that want the same step one works and the others refuse at once; those that want
different steps share what is finished. A run that is interrupted ends whole."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.journal.lock import claimed
from infra.storage import manifest
from infra.tracking.tracker import Destination
from infra.tracking.writer import ID_TAG
from tests.faults import micro
from tests.pipelines.conftest import PROJECT, Cli, run_cli

CROWD = 100


def test_a_run_whose_steps_are_claimed_refuses_and_names_the_holder(cli: Cli, tmp_path: Path) -> None:
    options = ("smoke", "--json", f"storage.root={tmp_path / 'root'}")
    plan = cli("plan", *options).json["steps"]
    last = next(step for step in plan if step["name"] == "compare")  # nothing before it is held
    with claimed(tmp_path / "root" / "locks", [(last["name"], last["key"])]):
        result = cli("run", *options)
    assert result.code == 3
    assert f"compare {last['key'][:12]} is being made by process {os.getpid()}" in result.json["errors"][0]
    assert not list((tmp_path / "root" / "artifacts").iterdir()) and not list((tmp_path / "root" / "runs").iterdir())


def test_a_wish_for_gpus_that_are_not_there_is_refused_with_the_steps(cli: Cli, tmp_path: Path) -> None:
    result = cli("run", "smoke", "--json", "cluster.num_gpus_per_worker=1", f"storage.root={tmp_path / 'root'}")
    assert result.code == 3 and {step["status"] for step in result.json["steps"]} == {"blocked"}
    assert "pretrain_mlm: wants 2 GPUs, the cluster has 0" in result.json["errors"][0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_is_closed_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    root, said = tmp_path / "root", tmp_path / "said.txt"
    command = [sys.executable, "-m", "pipelines.cli", "run", "smoke", f"storage.root={root}"]
    with said.open("w") as stream:
        run = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=stream)
    try:
        deadline = time.monotonic() + 120
        while "corpus runs" not in said.read_text():
            assert run.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        assert run.wait(60) == 130
        assert said.read_text().splitlines()[-1] == "error: interrupted; finished steps are kept, run again to go on"
        assert not psutil.wait_procs(family, timeout=30)[1]
        (record,) = (json.loads(path.read_text()) for path in (root / "runs").glob("*.json"))
        assert record["status"] == "KILLED"
    finally:
        run.kill()


def _mlflow_ids(root: Path) -> list[str]:
    """Our own ids of all runs in MLflow, less the pipeline run's part; all must have ended well."""
    location = (root / "mlartifacts").as_uri()
    target = Destination(uri=f"sqlite:///{root / 'mlflow.db'}", experiment="fromzero", artifact_location=location)
    writer = target.open()
    found = writer.client.search_runs([writer.experiment_id], max_results=1000)
    assert {run.info.status for run in found} == {"FINISHED"}
    return sorted(run.data.tags[ID_TAG].partition("/")[2] for run in found)


@pytest.mark.slow
def test_a_hundred_processes_that_start_at_once_on_a_fresh_root_break_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = [sys.executable, "-m", "tests.pipelines.crowd", str(root), str(CROWD)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == CROWD and not [one for one in told if "Traceback" in one["err"]]
    others = [one for one in told if one["command"] != "run"]
    assert {one["code"] for one in others} == {0}, [one["err"] for one in others if one["code"]]
    ran = [one for one in told if one["command"] == "run"]
    made = [one for one in ran if one["code"] == 0 and one["document"]["steps"][0]["status"] == "ran"]
    assert len(made) == 1
    refused = [one for one in ran if one["code"] == 3]
    holder = r"task [0-9a-f]{12} is being made by process \d+ on \S+; wait for it, or stop it, then run again"
    assert refused and all(re.fullmatch(holder, *one["document"]["errors"]) for one in refused)
    late = [one for one in ran if one not in made and one not in refused]  # came when it was made
    assert {(one["code"], one["document"]["steps"][0]["status"]) for one in late} <= {(0, "reused")}
    (folder,) = (root / "artifacts" / "task").iterdir()
    assert manifest.verify(folder)["made_by_run"] in {path.stem for path in (root / "runs").iterdir()}
    assert not list((root / "temporary").iterdir()) and len(list((root / "runs").iterdir())) == 1
    assert _mlflow_ids(root) == ["", "task"]


@pytest.mark.slow
def test_two_pipelines_share_finished_steps_and_run_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "root"
    shared = ("smoke", "--json", *micro.ARGUMENTS[3:], "pretrain_clm.steps=4", f"storage.root={root}")
    begun = run_cli("run", *shared, "--until=token_shards", cwd=tmp_path)
    assert begun.code == 0, begun.err
    command = [sys.executable, "-m", "pipelines.cli", "run", *shared]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    both = []
    for last in ("pretrain_mlm", "pretrain_clm"):
        said = (tmp_path / last).open("w")
        process = subprocess.Popen(
            [*command, f"--until={last}"], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=said, text=True
        )
        both.append((last, process))
    for last, process in both:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, (tmp_path / last).read_text()
        *before, made = json.loads(out)["steps"]
        assert {step["status"] for step in before} == {"reused"} and (made["name"], made["status"]) == (last, "ran")
    records = [json.loads(path.read_text()) for path in sorted((root / "runs").iterdir())[1:]]
    (first, second) = sorted((one["started_at"], one["finished_at"]) for one in records)
    assert second[0] < first[1], "one waited for the other"
    assert _mlflow_ids(root) == [
        "",
        "",
        "",
        "corpus",
        "pretrain_clm",
        "pretrain_mlm",
        "task",
        "token_shards",
        "tokenizer",
    ]
