"""Two runs that want the same steps: one works, the other refuses at once. A run that is interrupted ends whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.journal.lock import claimed
from tests.pipelines.conftest import PROJECT, Cli


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
