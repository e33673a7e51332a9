"""The two steps: training prompts as shards, and judging by prompts with and without Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from components.prompting.config import PromptConfig, PromptExamplesConfig
from components.prompting.demonstrations import Rows
from components.prompting.evaluation import judge, majority
from components.prompting.step import make_prompt_examples, prompt
from components.prompting.worker import PromptWorker, ScoredUnit, concatenate
from components.tokenization.shards import TokenShards
from infra.cluster.config import ClusterConfig
from infra.errors import ConfigError, DataError, UserError
from infra.journal.step import Artifact, StepContext, StepOutput
from infra.tracking.client import StepTracker
from infra.tracking.records import PromptRecord

LABELS = ["noun.artifact", "noun.person", "noun.world_affairs"]


def some_rows(split: str, count: int) -> list[tuple[str, str]]:
    words = ["tool for cutting", "person who travels", "meeting of countries"]
    return [(f"a {words[i % 3]} number {i} of {split}", LABELS[i % 3]) for i in range(count)]


def folder_artifact(step: str, path: Path) -> Artifact:
    return Artifact(step=step, key="0" * 32, path=path, metrics={})


def context_at(path: Path) -> StepContext:
    (path / "output").mkdir(parents=True)
    (path / "work").mkdir()
    return StepContext(
        step="s", key="0" * 32, output=path / "output", work=path / "work", raw={}, tracker=StepTracker(step="s")
    )


@pytest.fixture
def task(make_task: Callable[..., Artifact]) -> Artifact:
    splits = {"train": some_rows("train", 40), "validation": some_rows("validation", 9), "test": some_rows("test", 21)}
    return make_task(splits, LABELS)


@pytest.fixture
def tokenizer_artifact(byte_tokenizer: Any, tmp_path: Path) -> Artifact:
    byte_tokenizer.save_pretrained(tmp_path / "t" / "tokenizer")
    return folder_artifact("tokenizer", tmp_path / "t")


def save_model(model: Any, tokenizer: Any, path: Path) -> Artifact:
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    return folder_artifact(path.name, path)


def make_examples(
    task: Artifact, tokenizer: Artifact, path: Path, **values: Any
) -> tuple[StepOutput, dict[str, TokenShards]]:
    config = PromptExamplesConfig(sequence_length=96, **values)
    context = context_at(path)
    output = make_prompt_examples(config, {"task": task, "tokenizer": tokenizer}, context)
    return output, {split: TokenShards(context.output, split) for split in ("train", "validation")}


def examples_of(shards: TokenShards) -> list[tuple[list[int], list[bool]]]:
    found = []
    for index in range(len(shards)):
        tokens, targets = shards.tokens(np.array([index]))[0], shards.targets(np.array([index]))[0]
        start = 0
        for length in shards.document_lengths(index):
            found.append((tokens[start : start + length].tolist(), targets[start : start + length].tolist()))
            start += length
        assert not targets[start:].any()
    return found


def test_every_training_row_is_one_whole_example_whose_targets_are_its_label(
    task: Artifact, tokenizer_artifact: Artifact, byte_tokenizer: Any, tmp_path: Path
) -> None:
    output, shards = make_examples(task, tokenizer_artifact, tmp_path / "a")
    examples = examples_of(shards["train"])
    rendered = []
    for tokens, targets in examples:
        assert (tokens[0], tokens[-1]) == (byte_tokenizer.bos_token_id, byte_tokenizer.eos_token_id)
        assert not targets[-1]
        label = [token for token, target in zip(tokens, targets, strict=True) if target]
        rendered.append((byte_tokenizer.decode(tokens[1:-1]), byte_tokenizer.decode(label)))
    phrases = {"noun.artifact": "artifact", "noun.person": "person", "noun.world_affairs": "world affairs"}
    want = [
        (f"Definition: {text}\nCategory: {phrases[label]}", f" {phrases[label]}")
        for text, label in some_rows("train", 40)
    ]
    assert sorted(rendered) == sorted(want)
    split = shards["train"].split
    assert split.num_documents == output.metrics["num_train_examples"] == 40
    assert split.num_text_bytes == sum(len(text.encode()) for text, _ in want)
    assert split.num_target_tokens == sum(sum(targets) for _, targets in examples)
    assert split.num_tokens == split.num_text_tokens + 80 == sum(len(tokens) for tokens, _ in examples)
    counts = np.load(tmp_path / "a" / "output" / "unigram_counts.npy")
    assert counts.sum() == split.num_tokens and counts[byte_tokenizer.bos_token_id] == 40
    assert len(examples_of(shards["validation"])) == 9


def test_examples_are_a_seeded_sample_and_the_same_again(
    task: Artifact, tokenizer_artifact: Artifact, tmp_path: Path
) -> None:
    made = [
        examples_of(make_examples(task, tokenizer_artifact, tmp_path / name, max_examples=10, seed=seed)[1]["train"])
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert made[0] == made[1] != made[2]
    assert len(made[0]) == 10


def test_long_chinese_texts_are_cut_and_counted(
    make_task: Callable[..., Artifact], tokenizer_artifact: Artifact, byte_tokenizer: Any, tmp_path: Path
) -> None:
    task = make_task({"train": [("测量时间的仪器" * 60, "器物"), ("在海上旅行的人", "人物")]}, ["器物", "人物"])
    output, shards = make_examples(task, tokenizer_artifact, tmp_path / "a", template="文本：{{text}}\n类别：{{label}}")
    assert output.metrics["num_train_texts_cut"] == 1
    assert output.metrics["num_validation_examples"] == 0 == len(shards["validation"])
    texts = sorted(byte_tokenizer.decode(tokens[1:-1]) for tokens, _ in examples_of(shards["train"]))
    assert texts[0] == "文本：在海上旅行的人\n类别：人物"
    assert texts[1].startswith("文本：测量时间的仪器测量") and texts[1].endswith("\n类别：器物")


def test_a_verbalizer_that_does_not_fit_the_task_stops_the_step(
    task: Artifact, tokenizer_artifact: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no phrase for the labels noun.person, noun.world_affairs"):  # noqa: RUF043
        make_examples(task, tokenizer_artifact, tmp_path / "a", verbalizer={"noun.artifact": "thing"})


def test_a_task_without_training_rows_is_named(
    make_task: Callable[..., Artifact], tokenizer_artifact: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the train split has no rows"):
        make_examples(make_task({}, LABELS), tokenizer_artifact, tmp_path / "a")


def run_prompt(
    task: Artifact, base: Artifact, tuned: Artifact | None, path: Path, **values: Any
) -> tuple[StepOutput, dict[str, Any], Path]:
    inputs = {"task": task, "pretrain_clm": base, **({"tune_decoder": tuned} if tuned else {})}
    context = context_at(path)
    output = prompt(PromptConfig(**{"allow_unchecked_model": True, **values}), inputs, context)
    return output, json.loads((context.output / "results.json").read_text(encoding="utf-8")), context.output


def test_a_model_that_may_have_read_the_test_set_is_refused(
    task: Artifact, byte_tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    base = save_model(make_model("llama", len(byte_tokenizer)), byte_tokenizer, tmp_path / "pretrain_clm")
    with pytest.raises(DataError, match=r"prompt: .*task.validation and task.test.*allow_unchecked_model=true"):
        run_prompt(task, base, None, tmp_path / "a", allow_unchecked_model=False)


@pytest.mark.ray
def test_prompt_judges_both_models_on_all_test_rows_and_again_the_same(
    task: Artifact,
    byte_tokenizer: Any,
    make_model: Callable[..., Any],
    tmp_path: Path,
    ray_cluster: Mapping[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = save_model(make_model("llama", len(byte_tokenizer)), byte_tokenizer, tmp_path / "pretrain_clm")
    tuned = save_model(make_model("gpt2", len(byte_tokenizer)), byte_tokenizer, tmp_path / "tune_decoder")
    monkeypatch.setattr("components.prompting.step.ROWS_PER_UNIT", 8)
    output, results, folder = run_prompt(task, base, tuned, tmp_path / "a", shots=(0, 2))
    other = {"shots": (2, 0), "cluster": ClusterConfig(num_workers=1)}
    again, results_again, _ = run_prompt(task, base, tuned, tmp_path / "b", **other)
    assert output.metrics == again.metrics and results == results_again
    names = [evaluation["name"] for evaluation in results["evaluations"]]
    assert sorted(names) == sorted(
        f"{name}{suffix}" for name in ("base_0shot", "base_2shot", "tuned_0shot") for suffix in ("", "_calibrated")
    )
    ids = pq.read_table(task.path / "test.parquet")
    for evaluation in results["evaluations"]:
        table = pq.read_table(folder / evaluation["predictions"])
        assert table.column_names == ["id", "label", "predicted"]
        assert table["id"].to_pylist() == ids["id"].to_pylist()
        right = sum(a == b for a, b in zip(*(table[n].to_pylist() for n in ("label", "predicted")), strict=True))
        assert (right / 21, right) == (evaluation["accuracy"], evaluation["num_correct"])
        assert evaluation["accuracy_low"] <= evaluation["accuracy"] <= evaluation["accuracy_high"]
        assert sum(evaluation["prediction_histogram"].values()) == 21
        assert evaluation["inference_flops_per_example"] > 0
    chosen = {name: next(e for e in results["evaluations"] if e["name"] == results["chosen"][name])
              for name in ("base", "tuned")}  # fmt: skip
    for model, evaluation in chosen.items():  # by validation, whatever the test says
        rivals = [e["validation_accuracy"] for e in results["evaluations"] if e["model"] == model]
        assert evaluation["validation_accuracy"] == max(rivals)
    assert output.metrics["test_accuracy"] == chosen["tuned"]["accuracy"]
    assert output.metrics["base_test_accuracy"] == chosen["base"]["accuracy"]
    assert output.metrics["chance_accuracy"] == pytest.approx(1 / 3)
    assert any(row["permuted_labels"] for row in results["validation"])
    training_ids = set(pq.read_table(task.path / "train.parquet")["id"].to_pylist())
    assert all(set(evaluation["demonstrations"]) <= training_ids for evaluation in results["evaluations"])
    prompts = {record.name: record.template for record in output.records if isinstance(record, PromptRecord)}
    assert prompts["fromzero-classification-0shot"] == "Definition: {{text}}\nCategory: {{label}}"
    assert prompts["fromzero-classification-2shot"].count("Definition:") == 3

    # a step killed after its work is read from its units, without a model
    for file in (tmp_path / "pretrain_clm" / "model").iterdir():
        file.unlink()
    units = tmp_path / "a" / "work" / "units"
    assert len(list(units.glob("*.npz"))) == (1 + 3 + 1 + 1) * 2 + 3 * 3
    (tmp_path / "c" / "work").mkdir(parents=True)
    units.rename(tmp_path / "c" / "work" / "units")
    context = StepContext(
        step="s",
        key="0" * 32,
        output=tmp_path / "c",
        work=tmp_path / "c" / "work",
        raw={},
        tracker=StepTracker(step="s"),
    )
    resumed = prompt(
        PromptConfig(shots=(0, 2), allow_unchecked_model=True),
        {"task": task, "pretrain_clm": base, "tune_decoder": tuned},
        context,
    )
    assert resumed.metrics == output.metrics


@pytest.mark.ray
def test_a_users_mistake_in_a_worker_arrives_as_it_was_raised(
    task: Artifact,
    byte_tokenizer: Any,
    make_model: Callable[..., Any],
    tmp_path: Path,
    ray_cluster: Mapping[str, float],
) -> None:
    base = save_model(make_model("llama", len(byte_tokenizer), 64), byte_tokenizer, tmp_path / "pretrain_clm")
    with pytest.raises(UserError, match="prompt.max_length: 200 is more than the model's 64 positions") as caught:  # noqa: RUF043
        run_prompt(task, base, None, tmp_path / "a", shots=(0,), max_length=200)
    assert type(caught.value) is UserError


def test_a_worker_scores_one_text_as_it_does_in_a_block(
    byte_tokenizer: Any, make_model: Callable[..., Any], tmp_path: Path
) -> None:
    from components.prompting.encoding import PromptSpec
    from components.prompting.template import parse_template
    from components.prompting.worker import ScoringUnit

    folder = save_model(make_model("llama", len(byte_tokenizer)), byte_tokenizer, tmp_path / "m").path / "model"
    template = parse_template("文本：{{text}}\n类别：{{label}}", instruction="选择类别。", demo_delimiter="\n\n")
    spec = PromptSpec(template=template, demonstrations=(), phrases=("体育新闻", "人物", "工具"))
    texts = ("在海上旅行的人", "一种用来切割木头的工具", "测量时间的仪器")
    worker = PromptWorker(1, 8, False)

    def score(part: tuple[str, ...]) -> ScoredUnit:
        return worker.score(ScoringUnit(name="u", model_folder=folder, spec=spec, texts=part, max_length=None))

    block = score(texts)
    alone = concatenate([score((text,)) for text in texts])
    np.testing.assert_allclose(alone.scores_NK, block.scores_NK, atol=1e-4)
    assert block.counts["num_boundaries_checked"] == 9
    block.save(tmp_path / "unit.npz")
    loaded = ScoredUnit.load(tmp_path / "unit.npz")
    np.testing.assert_array_equal(loaded.scores_NK, block.scores_NK)
    assert (loaded.counts, loaded.prefix_lengths) == (block.counts, block.prefix_lengths)


def test_ties_are_counted_and_the_majority_is_that_of_the_training_rows() -> None:
    rows = Rows(ids=["1", "2", "3"], texts=["x"] * 3, labels=["a", "b", "b"])
    judged = judge(np.array([[0.0, 0.0], [0.0, 1.0], [2.0, 1.0]]), rows, ["a", "b"], 0)
    assert (judged.predictions, judged.num_ties, judged.histogram) == (["a", "b", "a"], 1, {"a": 2, "b": 1})
    training = Rows(ids=["1", "2", "3"], texts=["x"] * 3, labels=["a", "a", "b"])
    assert majority(training, rows) == ("a", pytest.approx(1 / 3))
