"""A tracking server that never comes back costs a run nothing but a line on standard error; `sync` delivers later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.tracking.tracker import Destination
from infra.tracking.writer import ID_TAG
from tests.pipelines.conftest import Smoke, run_cli
from tests.servers import MlflowServer, Proxy, free_port

pytestmark = pytest.mark.slow
TINY = [
    "corpus.sample_fraction=0.02",
    "task.sample_fraction=0.02",
    "tokenizer.vocab_size=512",
    *(f"{step}.steps=4" for step in ("pretrain_mlm", "pretrain_clm", "tune_decoder")),
    *(f"{step}.checkpoint_every_steps=2" for step in ("pretrain_mlm", "pretrain_clm", "tune_decoder")),
    *(f"{step}.log_every_steps=1" for step in ("pretrain_mlm", "pretrain_clm", "tune_decoder")),
    "pretrain_mlm.validation_every_steps=2",
    "pretrain_clm.validation_every_steps=2",
    "tune_examples=100",
    "finetune.label_budgets=[100]",
    "finetune.num_trials=1",
    "finetune.num_rungs=1",
    "finetune.seeds=1",
    "finetune.compare_with_scratch=false",
    "prompt.shots=[0]",
    "prompt.max_validation_rows=20",
    "prompt.max_test_rows=20",
    "cluster.num_workers=1",
]


@pytest.fixture(scope="module")
def port() -> int:
    """Where nobody listens, until a test lets somebody."""
    return free_port()


@pytest.fixture(scope="module")
def options(port: int, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("away") / "root"
    tracking = [f"tracking.uri=http://127.0.0.1:{port}", "tracking.flush_timeout_seconds=2"]
    return ["smoke", "--json", f"storage.root={root}", *tracking, *TINY]


@pytest.fixture(scope="module")
def away(options: list[str]) -> Smoke:
    """A run whose server was away from its start to its end."""
    root = Path(options[2].removeprefix("storage.root="))
    return Smoke(root, run_cli("run", *options, cwd=root.parent))


def test_a_run_ends_well_without_its_server_and_says_so_in_one_line(away: Smoke, port: int) -> None:
    assert away.result.code == 0, away.result.err
    document = away.result.json
    assert (document["status"], document["run_id"], document["errors"]) == ("FINISHED", None, [])
    assert {step["status"] for step in document["steps"]} == {"ran"}
    told = [line for line in away.result.err.splitlines() if "MLflow" in line and line != "delivering to MLflow"]
    reason = f"http://127.0.0.1:{port} does not answer"
    assert told == [f"MLflow did not take everything ({reason}); `fromzero sync` delivers the rest later"]
    assert "Traceback" not in away.result.err


def test_sync_delivers_it_all_once_the_server_is_up_and_names_what_was_damaged(
    away: Smoke, options: list[str], port: int, mlflow_server: MlflowServer
) -> None:
    (spool,) = (away.root / "spool").glob("*.jsonl")
    with spool.open("ab") as stream:
        stream.write(b'{"kind": "ta\n')
    early = run_cli("sync", *options, cwd=away.root)
    assert early.code == 3 and f"http://127.0.0.1:{port} does not answer" in early.json["errors"][0]
    with Proxy(mlflow_server.port, lambda what, body: False, port):
        done = [run_cli("sync", *options, cwd=away.root) for _ in range(2)]
        assert [one.code for one in done] == [0, 0], done[0].err
        damaged = f"1 damaged lines of the spool, kept in {spool.with_suffix('.damaged')}"
        assert done[0].json["kept_aside"] == [damaged] and damaged in done[0].err.splitlines()
        assert (done[0].json["delivered"], done[1].json["delivered"]) == ([spool.stem], [])
        assert not list((away.root / "spool").glob("*.jsonl"))

    writer = Destination(uri=mlflow_server.uri, experiment="fromzero", artifact_location=None).open()
    found = writer.client.search_runs([writer.experiment_id], max_results=1000)
    runs: dict[str, Any] = {run.data.tags[ID_TAG].removeprefix(f"{spool.stem}"): run for run in found}
    assert len(runs) == len(found) and {run.info.status for run in found} == {"FINISHED"}
    assert {f"/{step['name']}" for step in away.result.json["steps"]} <= set(runs)
    trials = [own_id for own_id in runs if own_id.startswith("/finetune/")]
    assert trials and all(runs[own_id].data.metrics for own_id in trials)
    curve = writer.client.get_metric_history(runs["/pretrain_mlm"].info.run_id, "train_loss")
    assert [point.step for point in curve] == [1, 2, 3, 4]
    (version,) = writer.client.search_model_versions("name = 'fromzero-smoke-classifier'")
    assert version.run_id == runs["/finetune"].info.run_id
    nodes = json.loads(Path(writer.client.download_artifacts(runs[""].info.run_id, "lineage.json")).read_text("utf-8"))[
        "nodes"
    ]
    assert all(node["facts"].get("mlflow_url") for node in nodes if node["kind"] == "step")
