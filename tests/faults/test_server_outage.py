"""An MLflow server that is killed in the middle of a run and comes back a minute later: the run does not notice, and
everything arrives once."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from infra.tracking.tracker import Destination
from infra.tracking.writer import ID_TAG
from tests.faults import micro
from tests.servers import MlflowServer

pytestmark = [pytest.mark.slow, pytest.mark.faults]
AWAY_SECONDS = float(os.environ.get("FROMZERO_TEST_AWAY_SECONDS", "60"))
EXPERIMENT = "outage"


def test_a_run_whose_server_dies_in_the_middle_and_comes_back_loses_and_doubles_nothing(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    target = Destination(uri=mlflow_server.uri, experiment=EXPERIMENT, artifact_location=None)
    ended: list[micro.Ended] = []
    arguments = (f"tracking.uri={target.uri}", f"tracking.experiment={EXPERIMENT}")
    run = threading.Thread(target=lambda: ended.append(micro.run(tmp_path, None, *arguments)))
    run.start()
    training = tmp_path / "root" / "work" / "pretrain_mlm"
    while not list(training.glob("*/checkpoints/step_*/manifest.json")):  # it trains, and has sent points
        assert run.is_alive(), ended[0].err
        time.sleep(0.05)
    mlflow_server.kill()
    killed_at = time.time()
    try:
        time.sleep(AWAY_SECONDS)
        waiting = list((tmp_path / "root" / "spool").glob("*.jsonl"))
        assert waiting, "the run ended without what it had to deliver"
    finally:
        mlflow_server.start()
    run.join()
    (one,) = ended
    assert one.code == 0, one.err
    document = json.loads(one.out)
    assert document["run_id"] and all(step["run_id"] for step in document["steps"])
    assert not list((tmp_path / "root" / "spool").glob("*.jsonl")) and "Traceback" not in one.err

    writer = target.open()
    found = writer.client.search_runs([writer.experiment_id], max_results=1000)
    runs: dict[str, Any] = {run.data.tags[ID_TAG].partition("/")[2]: run for run in found}
    assert len(runs) == len(found) and {run.info.status for run in found} == {"FINISHED"}
    curve = writer.client.get_metric_history(runs["pretrain_mlm"].info.run_id, "train_loss")
    assert [point.step for point in curve] == list(range(1, 9))
    assert any(point.timestamp / 1000 > killed_at for point in curve), "it was over before the server died"
    (version,) = writer.client.search_model_versions("name = 'fromzero-smoke-classifier'")
    assert writer.client.get_model_version_by_alias(version.name, "champion").version == version.version
    assert version.run_id == runs["finetune"].info.run_id
