"""The whole DAG at its smallest, and what it leaves: in ROOT, in MLflow, for a stranger's process, for a second run."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.corpus.normalise import text_id
from infra.storage import manifest
from tests.pipelines.conftest import PROJECT, Cli, Smoke, run_cli

pytestmark = pytest.mark.slow
STEPS = [
    "task",
    "corpus",
    "tokenizer",
    "token_shards",
    "pretrain_mlm",
    "pretrain_clm",
    "finetune",
    "prompt_examples",
    "tune_decoder",
    "prompt",
    "compare",
]


def step_of(smoke: Smoke, name: str) -> Any:
    return next(step for step in smoke.result.json["steps"] if step["name"] == name)


def folder_of(smoke: Smoke, name: str) -> Path:
    return smoke.root / "artifacts" / name / step_of(smoke, name)["key"]


def num_lines(name: str) -> int:
    """Of a data set that comes with the project, counted without its readers."""
    with gzip.open(PROJECT / "conf" / "data" / "wordnet" / name) as stream:
        return sum(1 for _ in stream)


@pytest.fixture(scope="module")
def client(smoke: Smoke) -> Any:
    from mlflow import MlflowClient

    uri = smoke.result.json["tracking_uri"]
    return MlflowClient(tracking_uri=uri, registry_uri=uri)  # other tests of this process have set another registry


@pytest.fixture(scope="module")
def mlflow_runs(client: Any) -> dict[str, Any]:
    """Runs by our own id, without the pipeline run's id in front."""
    experiment = client.get_experiment_by_name("fromzero")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return {run.data.tags["fromzero.id"].partition("/")[2]: run for run in runs}


def test_the_document_is_whole(smoke: Smoke) -> None:
    document = smoke.result.json
    assert set(document) == {"pipeline", "run_id", "status", "root", "tracking_uri", "steps", "errors"}
    assert (document["pipeline"], document["status"], document["errors"]) == ("smoke", "FINISHED", [])
    assert sorted(step["name"] for step in document["steps"]) == sorted(STEPS)
    for step in document["steps"]:
        assert set(step) == {
            "name",
            "key",
            "status",
            "reasons",
            "run_id",
            "artifact_uri",
            "seconds",
            "metrics",
            "measured",
        }
        assert step["status"] == "ran" and len(step["key"]) == 32 and step["run_id"]


def test_every_manifest_verifies(smoke: Smoke) -> None:
    for step in STEPS:
        manifest.verify(folder_of(smoke, step))


def test_the_metrics_have_the_names_that_users_rely_on(smoke: Smoke) -> None:
    wanted = {
        "corpus": {"num_documents_in", "num_documents_kept"},
        "token_shards": {"num_tokens"},
        "pretrain_mlm": {
            "train_loss",
            "validation_loss",
            "validation_loss/wordnet",
            "validation_pseudo_perplexity",
            "pseudo_bits_per_byte",
            "train_flops",
            "unigram_cross_entropy",
        },
        "pretrain_clm": {
            "train_loss",
            "validation_loss",
            "validation_loss/wordnet",
            "validation_perplexity",
            "bits_per_byte",
            "train_flops",
            "unigram_cross_entropy",
        },
        "finetune": {
            "test_accuracy",
            "test_accuracy_low",
            "test_accuracy_high",
            "test_macro_f1",
            "test_macro_f1_low",
            "test_macro_f1_high",
            "train_flops",
        },
        "prompt": {"test_accuracy", "test_accuracy_low", "test_accuracy_high", "test_macro_f1"},
    }
    for step, names in wanted.items():
        assert names <= set(step_of(smoke, step)["metrics"]), step
    measured = step_of(smoke, "pretrain_mlm")["measured"]
    assert {"tokens_per_second", "steps_per_second", "data_fraction", "mfu", "peak_tflops"} <= set(measured)


def test_every_row_is_kept_or_dropped_for_a_reason(smoke: Smoke) -> None:
    metrics = step_of(smoke, "corpus")["metrics"]
    dropped = sum(value for name, value in metrics.items() if name.startswith("dropped_"))
    assert metrics["num_documents_in"] == metrics["num_documents_kept"] + dropped > 0


def test_no_evaluation_document_is_in_the_pretraining_text(smoke: Smoke) -> None:
    task, corpus = folder_of(smoke, "task"), folder_of(smoke, "corpus")
    held_out = {
        text_id(text)
        for split in ("validation", "test")
        for text in pq.read_table(task / f"{split}.parquet").column("text").to_pylist()
    }
    texts = [text for path in corpus.glob("*-*.parquet") for text in pq.read_table(path).column("text").to_pylist()]
    assert held_out and texts and not held_out & {text_id(text) for text in texts}


def test_the_run_tree_in_mlflow_is_pipeline_step_trial(smoke: Smoke, client: Any, mlflow_runs: dict[str, Any]) -> None:
    top = mlflow_runs[""]
    assert top.info.run_id == smoke.result.json["run_id"] and top.info.status == "FINISHED"
    for name in STEPS:
        run = mlflow_runs[name]
        assert run.data.tags["mlflow.parentRunId"] == top.info.run_id
        assert run.data.tags["fromzero.key"] == step_of(smoke, name)["key"]
        assert run.info.run_id == step_of(smoke, name)["run_id"] and run.info.status == "FINISHED"
    trials = [run for name, run in mlflow_runs.items() if name.startswith("finetune/")]
    assert trials and all(t.data.tags["mlflow.parentRunId"] == mlflow_runs["finetune"].info.run_id for t in trials)
    assert all("learning_rate" in trial.data.params for trial in trials)
    assert {run.info.status for run in mlflow_runs.values()} == {"FINISHED"}
    assert top.data.tags["mlflow.note.content"] == step_of(smoke, "compare")["metrics"]["verdict"]


def test_inputs_are_datasets_whose_digest_is_the_producers_key(smoke: Smoke, mlflow_runs: dict[str, Any]) -> None:
    inputs = {d.dataset.name: d.dataset.digest for d in mlflow_runs["pretrain_mlm"].inputs.dataset_inputs}
    assert inputs == {name: step_of(smoke, name)["key"] for name in ("tokenizer", "token_shards")}
    raw = next(d for d in mlflow_runs["corpus"].inputs.dataset_inputs if d.dataset.name.startswith("wordnet:"))
    assert json.loads(raw.dataset.profile)["num_rows"] == num_lines("glosses.jsonl.gz")
    assert {tag.key: tag.value for tag in raw.tags}["num_rows"] == str(num_lines("glosses.jsonl.gz"))


def test_curves_artifacts_and_lineage_are_in_mlflow(client: Any, mlflow_runs: dict[str, Any]) -> None:
    run = mlflow_runs["pretrain_mlm"].info.run_id
    steps = [point.step for point in client.get_metric_history(run, "train_loss")]
    assert len(steps) > 1 and steps == sorted(set(steps))
    names = {item.path for item in client.list_artifacts(mlflow_runs[""].info.run_id)}
    assert {"config.json", "lineage.json", "lineage.html"} <= names
    nodes = json.loads(Path(client.download_artifacts(mlflow_runs[""].info.run_id, "lineage.json")).read_text())[
        "nodes"
    ]
    linked = {node["name"]: node["facts"].get("mlflow_url", "") for node in nodes if node["kind"] == "step"}
    assert all(url.endswith(f"/runs/{mlflow_runs[name].info.run_id}") for name, url in linked.items())
    outlets = {node["facts"].get("mlflow_url") for node in nodes if node["kind"] in ("model", "prompt")}
    assert outlets == {linked[name] for name in ("pretrain_mlm", "pretrain_clm", "tune_decoder", "finetune", "prompt")}
    assert "comparison.png" in {item.path for item in client.list_artifacts(mlflow_runs["compare"].info.run_id)}


def test_the_champion_and_the_prompts_are_registered(smoke: Smoke, client: Any) -> None:
    version = client.get_model_version_by_alias("fromzero-smoke-classifier", "champion")
    assert version.tags["fromzero.key"] == step_of(smoke, "finetune")["key"]
    prompts = client.search_prompts()
    assert prompts and all(prompt.name.startswith("fromzero-smoke") for prompt in prompts)


LOAD = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer
import pyarrow.parquet as pq
mlm, clm, classifier, task, predictions = sys.argv[1:]
AutoModelForMaskedLM.from_pretrained(mlm), AutoModelForCausalLM.from_pretrained(clm)
tokenizer = AutoTokenizer.from_pretrained(classifier)
model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
rows = pq.read_table(task).to_pydict()
right = 0
with torch.inference_mode():
    for text, label in zip(rows["text"], rows["label"]):
        logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits
        right += model.config.id2label[int(logits.argmax())] == label
ours = [name for name in sys.modules if name.startswith(("components", "infra", "pipelines"))]
print(json.dumps({"right": right, "rows": len(rows["text"]), "ours": ours}))
"""


def test_the_models_load_without_our_packages_and_give_the_reported_accuracy(smoke: Smoke, tmp_path: Path) -> None:
    arguments = [
        folder_of(smoke, "pretrain_mlm") / "model",
        folder_of(smoke, "pretrain_clm") / "model",
        folder_of(smoke, "finetune") / "model",
        folder_of(smoke, "task") / "test.parquet",
        "",
    ]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours"] == []
    assert found["right"] == round(step_of(smoke, "finetune")["metrics"]["test_accuracy"] * found["rows"])


def test_a_second_run_reuses_everything_in_seconds(smoke: Smoke) -> None:
    again = run_cli("run", "smoke", "--json", f"storage.root={smoke.root}", cwd=smoke.root)
    assert again.code == 0 and {step["status"] for step in again.json["steps"]} == {"reused"}
    assert again.json["run_id"] == smoke.result.json["run_id"]
    first = {step["name"]: (step["key"], step["metrics"], step["run_id"]) for step in smoke.result.json["steps"]}
    assert {step["name"]: (step["key"], step["metrics"], step["run_id"]) for step in again.json["steps"]} == first


def test_another_number_of_workers_reuses_and_another_learning_rate_says_what_runs(smoke: Smoke) -> None:
    root = f"storage.root={smoke.root}"
    same = run_cli(
        "plan", "smoke", "--json", root, "cluster.num_workers=1", "pretrain_mlm.zero_stage=2", cwd=smoke.root
    )
    assert {step["status"] for step in same.json["steps"]} == {"reused"}
    other = run_cli("plan", "smoke", "--json", root, "pretrain_mlm.learning_rate=1e-4", cwd=smoke.root).json["steps"]
    reasons = {step["name"]: step["reasons"] for step in other if step["status"] == "run"}
    assert set(reasons) == {"pretrain_mlm", "finetune", "compare"}
    expected = "pretrain_mlm.learning_rate changed 0.003 -> 0.0001 (command line)"
    assert {tuple(told) for told in reasons.values()} == {(expected,)}


def test_why_traces_a_step_to_the_value_that_changed(smoke: Smoke, cli: Cli) -> None:
    options = (f"storage.root={smoke.root}", "smoke")
    change = "pretrain_mlm.learning_rate=1e-4"
    found = cli("why", "compare", options[1], options[0], change, "--json").json
    (cause,) = found["causes"]
    assert (found["status"], cause["step"]) == ("run", "pretrain_mlm")
    assert cause["text"] == "pretrain_mlm.learning_rate changed 0.003 -> 0.0001 (command line)"
    said = cli("why", "finetune", options[1], options[0], change).out.splitlines()
    assert said == ["finetune runs, because", f"  {cause['text']}   [by way of pretrain_mlm]"]
    assert "is reused: run " in cli("why", "finetune", options[1], options[0]).out
    assert cli("why", "nothing", options[1], options[0]).code == 2


def test_predict_classifies_from_arguments_and_standard_input(smoke: Smoke, cli: Cli) -> None:
    options = ["--model", "fromzero-smoke-classifier", f"storage.root={smoke.root}", "--json"]
    one = cli("predict", "a small domesticated animal", *options)
    two = cli("predict", *options, stdin="a small domesticated animal\n\n一种动物\n")
    assert one.code == two.code == 0, one.err + two.err
    assert one.json["predictions"][0] == two.json["predictions"][0]
    assert [p["text"] for p in two.json["predictions"]] == ["a small domesticated animal", "一种动物"]
    spaced = cli("predict", *options, "  a small\t\tdomesticated  animal ").json["predictions"][0]
    assert spaced["probability"] == one.json["predictions"][0]["probability"]  # cleaned as the training texts were
    assert cli("predict", *options, " ").code == 2


def test_lineage_leads_from_the_model_to_the_raw_files(smoke: Smoke, cli: Cli) -> None:
    found = cli("lineage", "fromzero-smoke-classifier", "--json", f"storage.root={smoke.root}").json
    raw = {Path(node["path"]).name: node["num_rows"] for node in found["nodes"] if node["kind"] == "raw"}
    assert raw == {name: num_lines(name) for name in ("glosses.jsonl.gz", "noun_files.jsonl.gz")}
    assert not any(node["name"] == "pretrain_clm" for node in found["nodes"])
    assert "glosses.jsonl.gz" in cli("lineage", "fromzero-smoke-classifier", f"storage.root={smoke.root}").out
    below = cli("lineage", "glosses.jsonl.gz", "--json", f"storage.root={smoke.root}").json
    assert "compare" in {node["name"] for node in below["nodes"]}


def test_the_lineage_page_opens_on_its_target_with_links(smoke: Smoke, cli: Cli, tmp_path: Path) -> None:
    page = tmp_path / "谱系.html"
    assert cli("lineage", "fromzero-smoke-classifier", "--html", str(page), f"storage.root={smoke.root}").code == 0
    text = page.read_text("utf-8")
    assert f"/runs/{step_of(smoke, 'finetune')['run_id']}" in text
    assert f'"target": "model/{step_of(smoke, "finetune")["key"]}/model"' in text


def test_status_and_doctor_tell_of_the_run(smoke: Smoke, cli: Cli) -> None:
    status = cli("status", "--json", f"storage.root={smoke.root}").json
    assert [run["status"] for run in status["runs"]] == ["FINISHED"]
    doctor = cli("doctor", "--json", f"storage.root={smoke.root}")
    assert doctor.code == 0 and {c["name"]: c["status"] for c in doctor.json["checks"]}["artifacts"] == "ok"


def test_the_dead_are_closed_in_the_record_and_in_mlflow(smoke: Smoke, client: Any, cli: Cli) -> None:
    """As after a kill -9: a record and two MLflow runs that say RUNNING; `status` meets them first, `sync` delivers."""
    record = json.loads(next((smoke.root / "runs").glob("*.json")).read_text())
    own_id = "20200101-000000-abcdef"
    process = {**record["process"], "pid": 2**22 - 1, "started": "1"}
    path = smoke.root / "runs" / f"{own_id}.json"
    path.write_text(json.dumps({**record, "id": own_id, "status": "RUNNING", "process": process}))
    experiment = client.get_experiment_by_name("fromzero").experiment_id
    left = [client.create_run(experiment, tags={"fromzero.id": i}).info.run_id for i in (own_id, f"{own_id}/finetune")]
    try:
        runs = cli("status", "--json", f"storage.root={smoke.root}").json["runs"]
        assert {run["id"]: run["status"] for run in runs}[own_id] == "KILLED"
        assert own_id in cli("sync", "--json", f"storage.root={smoke.root}").json["delivered"]
        assert {client.get_run(run).info.status for run in left} == {"KILLED"}
    finally:
        path.unlink()
        for run in left:
            client.delete_run(run)


def test_a_new_mlflow_store_is_filled_by_a_run_that_reuses_everything(
    smoke: Smoke, client: Any, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'new.db'}"
    options = ("smoke", "--json", f"storage.root={smoke.root}", f"tracking.uri={uri}")
    again = run_cli("run", *options, cwd=tmp_path).json
    assert {step["status"] for step in again["steps"]} == {"reused"}
    new = MlflowClient(tracking_uri=uri, registry_uri=uri)
    for step in again["steps"]:
        run = new.get_run(step["run_id"])
        assert (run.info.status, run.data.tags["fromzero.key"]) == ("FINISHED", step["key"])
    version = new.get_model_version_by_alias("fromzero-smoke-classifier", "champion")
    assert version.tags["fromzero.key"] == step_of(smoke, "finetune")["key"]
    for name in ("train_loss", "validation_loss"):
        first, second = (
            [(point.step, point.value) for point in one.get_metric_history(found["run_id"], name)]
            for one, found in (
                (client, step_of(smoke, "pretrain_mlm")),
                (new, next(step for step in again["steps"] if step["name"] == "pretrain_mlm")),
            )
        )
        assert first == second and len(set(first)) == len(first)
        assert first[-1][1] == step_of(smoke, "pretrain_mlm")["metrics"][name]
    third = run_cli("run", *options, cwd=tmp_path)
    assert third.json["steps"] == again["steps"] and "delivering" not in third.err


def test_the_champion_follows_the_result_that_is_reused(smoke: Smoke, client: Any, tmp_path: Path) -> None:
    """An alias that somebody, or another run, moved stands on the printed result again after the run."""
    client.create_model_version("fromzero-smoke-classifier", str(tmp_path), tags={"fromzero.key": "other"})
    files = {json.loads(path.read_text())["uri"]: path for path in (smoke.root / "tracking").glob("*.json")}
    delivered = files[smoke.result.json["tracking_uri"]]
    content = json.loads(delivered.read_text())
    alias = "fromzero-smoke-classifier@champion"
    assert content["aliases"][alias] == step_of(smoke, "finetune")["key"]
    client.set_registered_model_alias("fromzero-smoke-classifier", "champion", 2)
    delivered.write_text(json.dumps({**content, "aliases": {alias: "another run's key"}}))
    assert run_cli("run", "smoke", "--json", f"storage.root={smoke.root}", cwd=tmp_path).code == 0
    version = client.get_model_version_by_alias("fromzero-smoke-classifier", "champion")
    assert version.tags["fromzero.key"] == step_of(smoke, "finetune")["key"]
    client.delete_model_version("fromzero-smoke-classifier", "2")
