"""A request whose answer gets lost is done all the same: it is looked up, not repeated. A real MLflow server behind a
proxy that hands the request on and drops the answer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from infra.storage import manifest
from infra.tracking.spool import Spool
from infra.tracking.tracker import Connection, Destination, Uploader
from infra.tracking.writer import ID_TAG
from tests.infra.toy_model import model_message, write_classifier
from tests.servers import MlflowServer, Proxy, each_once

KEY = "9" * 32


def messages(folder: Path) -> list[dict[str, Any]]:
    """One of every kind."""
    run = {"parent_id": None, "start_time": 1000, "tags": {"a": "b"}, "parameters": {"x": 1}}
    step = {"fromzero.key": KEY}
    write_classifier(folder / KEY / "model")
    manifest.write(folder / KEY, {})
    (folder / "file.txt").write_text("content")
    dataset = {"name": "corpus", "digest": "d" * 32, "context": "raw", "source": 'file:///a "b".jsonl'}
    prompt = {"type": "prompt", "name": "lost-prompt", "template": "{{text}} is"}
    node = {"id": f"s/{KEY}", "kind": "step", "name": "s", "facts": {"key": KEY}}
    points = [["loss", 1.0 / step, step, 1000 + step] for step in range(1, 1500)]
    return [
        {"kind": "run", "id": "lost", "name": "top", **run},
        {"kind": "run", "id": "lost/s", "name": "s", **run, "parent_id": "lost", "tags": step},
        {"kind": "run", "id": "lost/left", "name": "left", **run, "parent_id": "lost"},
        {"kind": "text", "id": "lost/s", "name": "config.json", "text": "{}"},
        {"kind": "file", "id": "lost/s", "path": str(folder / "file.txt"), "folder": "files"},
        {"kind": "datasets", "id": "lost/s", "datasets": [dataset]},
        {"kind": "metrics", "id": "lost/s", "points": points},
        {"kind": "tags", "id": "lost/s", "tags": {"c": "d"}},
        model_message("lost/s", KEY, folder / KEY / "model", "lost-classifier"),
        {"kind": "prompt", "id": "lost/s", "key": KEY, "record": prompt},
        {"kind": "end", "id": "lost/s", "status": "FINISHED", "end_time": 9000},
        {"kind": "lineage", "id": "lost", "about": "lost", "lineage": {"nodes": [node], "edges": []}},
        {"kind": "kill", "id": "lost", "end_time": 9500},
        {"kind": "end", "id": "lost", "status": "FINISHED", "end_time": 9999},
    ]


CREATIONS = (
    r"POST .*/experiments/create",
    r"POST .*/runs/create",
    r"POST .*/runs/log-batch",
    r"POST .*/runs/log-inputs",
    r"POST .*/runs/outputs",
    r"POST .*/runs/log-metric",
    r"POST .*/runs/update",
    r"POST .*/logged-models",
    r"PATCH .*/logged-models/m-",
    r"POST .*/registered-models/create",
    r"POST .*/model-versions/create",
    r"POST .*/registered-models/alias",
    r"POST .*/runs/set-tag",
    r"PUT .*/mlflow-artifacts/.*/lineage.html",
    r"PUT .*/mlflow-artifacts/.*/model.safetensors",
)


def test_nothing_is_there_twice_when_the_first_answer_to_every_request_is_lost(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "r.jsonl")
    for message in messages(tmp_path):
        spool.append(message)
    with Proxy(mlflow_server.port, each_once()) as proxy:
        lossy = Destination(uri=proxy.uri, experiment="lost", artifact_location=None)
        uploader = Uploader(spool, Connection(lossy, tmp_path / "lock"))
        for _ in range(300):
            if uploader.deliver(final=True):
                break
            assert uploader.error == f"{proxy.uri} does not answer"
    assert uploader.is_done and not uploader.state().kept_aside
    for creation in CREATIONS:
        assert any(re.match(creation, lost) for lost in proxy.lost), creation

    writer = Destination(uri=mlflow_server.uri, experiment="lost", artifact_location=None).open()
    client, experiment = writer.client, [writer.experiment_id]
    runs = {run.data.tags[ID_TAG]: run for run in client.search_runs(experiment)}
    assert len(runs) == len(client.search_runs(experiment)) == 3
    assert {own_id: run.info.status for own_id, run in runs.items()} == {
        "lost": "FINISHED",
        "lost/s": "FINISHED",
        "lost/left": "KILLED",
    }
    run = runs["lost/s"]
    assert (run.info.run_name, run.info.start_time, run.info.end_time) == ("s", 1000, 9000)
    assert run.data.tags["mlflow.parentRunId"] == runs["lost"].info.run_id and run.data.tags["c"] == "d"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, 1500))
    assert len(client.get_metric_history(run.info.run_id, "model_test_accuracy")) == 1
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == "d" * 32
    (model,) = client.search_logged_models(experiment)
    assert model.status.value == "READY" and [metric.value for metric in model.metrics] == [0.5]
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    (version,) = client.search_model_versions("name = 'lost-classifier'")
    assert client.get_model_version_by_alias("lost-classifier", "champion").version == version.version == "1"
    (prompt,) = client.search_prompt_versions("lost-prompt")
    assert prompt.version == 1 and '"lost-prompt"' in run.data.tags["mlflow.linkedPrompts"]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} == {"config.json", "files"}
    assert {item.path for item in client.list_artifacts(runs["lost"].info.run_id)} == {"lineage.json", "lineage.html"}
