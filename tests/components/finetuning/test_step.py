"""The whole step on the shared Ray; `outcome` runs it once for all tests that only look."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.finetuning import distributed, sweep, units
from components.finetuning.config import FinetuneConfig
from components.finetuning.predict import Classifier
from components.finetuning.step import finetune
from infra.errors import ConfigError, DataError, TrainingError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.tracking.client import StepTracker
from infra.tracking.records import ModelRecord, TrialRecord

MakeContext = Callable[..., StepContext]
CONFIG = FinetuneConfig(
    allow_unchecked_model=True,
    label_budgets=(60, "all"),
    num_trials=3,
    seeds=2,
    epochs_small=(2,),
    epochs_large=(6,),
    small_budget_rows=100,
    batch_sizes=(16,),
    learning_rate_min=2e-3,
    learning_rate_max=8e-3,
    max_tokens_per_trial=8_000,
    max_length=32,
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StepContext:
    root = tmp_path_factory.mktemp("step")
    (root / "output").mkdir()
    (root / "work").mkdir()
    tracker = StepTracker(step="finetune")
    return StepContext(
        step="finetune", key="c" * 32, output=root / "output", work=root / "work", raw={}, tracker=tracker
    )


@pytest.fixture(scope="module")
def outcome(ray_cluster: Mapping[str, float], inputs: dict[str, Artifact], context: StepContext) -> StepOutput:
    return finetune(CONFIG, inputs, context)


def read(context: StepContext, name: str) -> Any:
    return json.loads((context.output / name).read_text(encoding="utf-8"))


def test_the_saved_champion_gets_the_reported_count_right_with_plain_transformers(
    outcome: StepOutput, context: StepContext, inputs: dict[str, Artifact], tmp_path: Path
) -> None:
    program = f"""
import pyarrow.parquet as pq, torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder = {str(context.output / "model")!r}
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
table = pq.read_table({str(inputs["task"].path / "test.parquet")!r})
right = 0
for text, label in zip(table["text"].to_pylist(), table["label"].to_pylist()):
    with torch.no_grad():
        logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
    right += model.config.id2label[int(logits.argmax())] == label
print(model.dtype, right)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch.float32", str(outcome.metrics["num_test_correct"])]


def test_the_results_agree_with_the_predictions_and_the_metrics(
    outcome: StepOutput, context: StepContext, inputs: dict[str, Artifact]
) -> None:
    results = read(context, "results.json")
    names = [run["name"] for run in results["runs"]]
    assert names == [
        f"{init}_{budget}_seed{seed}"
        for budget, seeds in ((60, 2), ("all", 1))
        for init in ("pretrained", "scratch")
        for seed in range(seeds)
    ]
    ids = pq.read_table(inputs["task"].path / "test.parquet")["id"].to_pylist()
    for run in results["runs"]:
        table = pq.read_table(context.output / run["predictions"])
        assert table["id"].to_pylist() == sorted(ids)
        right = sum(a == b for a, b in zip(table["label"].to_pylist(), table["predicted"].to_pylist(), strict=True))
        assert right == run["num_correct"]
        assert run["accuracy"] == right / len(ids)
        assert run["accuracy_low"] <= run["accuracy"] <= run["accuracy_high"]
    assert results["champion"] == "pretrained_all_seed0"
    champion = results["runs"][names.index("pretrained_all_seed0")]
    assert outcome.metrics["test_accuracy"] == champion["accuracy"] > 0.45
    assert outcome.metrics["num_truncated_test"] == results["num_truncated"]["test"] > 0
    pairs = [(run["accuracy"]) for run in results["runs"][:4]]
    gain = (pairs[0] + pairs[1] - pairs[2] - pairs[3]) / 2
    assert outcome.metrics["pretraining_gain_60"] == pytest.approx(gain)
    assert not [name for name in outcome.metrics if "seconds" in name]
    assert outcome.measured["champion_fit_seconds"]
    final = pq.read_table(context.output / "predictions.parquet")
    assert final.equals(pq.read_table(context.output / champion["predictions"]))


def test_every_trial_and_final_fit_is_recorded_once(outcome: StepOutput, context: StepContext) -> None:
    trials = [record for record in outcome.records if isinstance(record, TrialRecord)]
    assert len({trial.trial_id for trial in trials}) == len(trials) == 4 * 3 + 2 * (2 + 1)
    assert sum(trial.status == "stopped" for trial in trials) == 4 * 2
    for trial in trials:
        steps = [step for step, _ in trial.history]
        assert steps == sorted(steps)
    chosen = {run["name"]: run["trial"] for run in read(context, "results.json")["runs"]}
    finals = {trial.trial_id: trial.parameters["trial"] for trial in trials if trial.parameters["kind"] == "final"}
    assert {name: chosen[name] for name in finals} == finals
    (model,) = (record for record in outcome.records if isinstance(record, ModelRecord))
    assert (model.alias, model.registered_name) == ("champion", "fromzero-classifier")
    card = (context.output / "model" / "README.md").read_text()
    assert f"{outcome.metrics['num_test_correct']:,} of 90 test texts are right" in card
    assert "cut on the right to 32 tokens" in card


def test_a_second_run_gives_the_same_metrics_and_trials(
    outcome: StepOutput, context: StepContext, inputs: dict[str, Artifact], make_context: MakeContext
) -> None:
    again = make_context("elsewhere")
    config = CONFIG.model_copy(update={"trials_concurrency": 1})
    assert dict(finetune(config, inputs, again).metrics) == dict(outcome.metrics)
    for name in ("results.json", "trials.json"):
        assert read(again, name) == read(context, name)


def test_a_killed_sweep_goes_on_from_what_was_finished(
    outcome: StepOutput, context: StepContext, inputs: dict[str, Artifact], make_context: MakeContext
) -> None:
    import shutil

    again = make_context("killed")
    shutil.copytree(context.work / "units", again.work / "units")
    gone = [path for path in (again.work / "units").iterdir() if "_seed" in path.name and "all" in path.name]
    for path in gone:
        shutil.rmtree(path)
    half = again.work / "units" / ".pretrained_all_seed0.1"
    half.mkdir()
    (half / "result.json").write_text("{")
    before = {path.name: path.stat().st_mtime_ns for path in (again.work / "units").iterdir()}
    assert dict(finetune(CONFIG, inputs, again).metrics) == dict(outcome.metrics)
    after = {path.name: path.stat().st_mtime_ns for path in (again.work / "units").iterdir()}
    new = {name for name in after if after[name] != before.get(name)}
    assert {path.name for path in gone} <= new
    assert not {name for name in new if "60" in name or "rung0" in name}


def test_a_failing_unit_raises_its_own_error(
    ray_cluster: Mapping[str, float], inputs: dict[str, Artifact], make_context: MakeContext
) -> None:
    config = CONFIG.model_copy(
        update={
            "label_budgets": (60,),
            "learning_rate_min": 1e30,
            "learning_rate_max": 1e31,
            "compare_with_scratch": False,
            "num_rungs": 1,
            "num_trials": 1,
        }
    )
    with pytest.raises(TrainingError, match=r"lower finetune\.learning_rate_max"):
        finetune(config, inputs, make_context("wild"))


def test_wrong_values_are_all_named_before_any_work(inputs: dict[str, Artifact], make_context: MakeContext) -> None:
    config = FinetuneConfig(label_budgets=(5, 5), dropouts=(2.0,))
    with pytest.raises(ConfigError, match=r"(?s)label_budgets.*dropouts"):
        finetune(config, inputs, make_context())


def test_a_model_that_may_have_read_the_test_set_is_refused(
    inputs: dict[str, Artifact], make_context: MakeContext
) -> None:
    with pytest.raises(DataError, match=r"finetune: .*task.validation and task.test.*allow_unchecked_model=true"):
        finetune(CONFIG.model_copy(update={"allow_unchecked_model": False}), inputs, make_context("unchecked"))


def test_twenty_classes_in_chinese_with_long_texts_run_whole(
    ray_cluster: Mapping[str, float], chinese_inputs: dict[str, Artifact], make_context: MakeContext
) -> None:
    values = {"label_budgets": (500, "all"), "num_trials": 1, "num_rungs": 1, "epochs_small": (1,), "seeds": 1}
    config = FinetuneConfig(allow_unchecked_model=True, **values)
    context = make_context()
    output = finetune(config, chinese_inputs, context)
    assert read(context, "results.json")["budgets"] == ["all"]
    assert output.metrics["num_truncated_test"] == 20
    (prediction,) = Classifier.load(context.output / "model").predict(["第三类文字" * 200])
    assert prediction.label in {f"类别{index}" for index in range(20)}


def test_searching_needs_no_ray_and_waits_at_the_barrier(tmp_path: Path) -> None:
    plan = sweep.make_sweep(CONFIG, "scratch", 60, num_rows=60, mean_length=20.0, largest=False)
    job = distributed.Job(
        config=CONFIG, encoder=tmp_path, data=tmp_path, units=tmp_path, labels=("a", "b"), pad_token_id=0
    )
    searcher = distributed.UnitSearcher(job, [plan], {}, StepTracker(step="finetune"))
    asked = [searcher.suggest(str(index)) for index in range(4)]
    assert [isinstance(answer, dict) for answer in asked] == [True, True, True, False]
    assert asked[3] is None
    found = units.UnitResult(
        step=1,
        num_tokens=1,
        num_texts=1,
        num_texts_own=1,
        train_flops=1.0,
        metrics={"validation_accuracy": 0.5},
        history=(),
        diverged=False,
        seconds=0.0,
    )
    searcher.running.clear()
    searcher.results = {f"scratch_60_trial{trial}_rung0": found for trial in range(3)}
    answer = searcher.suggest("5")
    assert isinstance(answer, dict) and answer["unit"].name == "scratch_60_trial0_rung1"
