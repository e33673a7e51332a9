"""The comparison as a step: its table, its verdict and its picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest

from components.comparison.config import CompareConfig
from components.comparison.step import compare
from infra.errors import DataError
from infra.journal.step import Artifact, StepContext

MakeInputs = Callable[..., dict[str, Artifact]]
NAMES = ["majority", "tfidf", "prompting_base", "prompting_tuned", "finetuning_scratch", "finetuning_pretrained"]


def run(inputs: dict[str, Artifact], context: StepContext) -> dict[str, Any]:
    output = compare(CompareConfig(), inputs, context)
    document: dict[str, Any] = json.loads((context.output / "comparison.json").read_text(encoding="utf-8"))
    assert output.metrics["verdict"] == document["verdict"]
    return document


def test_all_ways_are_there_with_their_accuracy_interval_and_cost(
    make_inputs: MakeInputs, context: StepContext
) -> None:
    document = run(make_inputs(), context)
    ways = {way["name"]: way for way in document["ways"]}
    assert list(ways) == NAMES
    assert [round(ways[name]["accuracy"], 2) for name in NAMES[2:]] == [0.27, 0.6, 0.7, 0.9]
    assert ways["majority"]["accuracy"] == pytest.approx(0.25)
    assert 0.5 < ways["tfidf"]["accuracy"] < 1
    assert [ways[name]["train_flops"] for name in NAMES[2:]] == [3e13, 4e13, 4e13, 6e13]
    assert ways["finetuning_pretrained"]["pretraining_flops"] == 2e13
    for way in ways.values():
        assert way["accuracy_low"] <= way["accuracy"] <= way["accuracy_high"]
        assert way["num_correct"] == round(way["accuracy"] * way["num_rows"])
    assert not [name for way in ways.values() for name in way if "seconds" in name]
    seconds = json.loads((context.output / "measured.json").read_text())
    assert seconds["finetuning_pretrained"] == {"adaptation_seconds": 31.0, "pretraining_seconds": 150.0}
    assert seconds["prompting_tuned"] == {"adaptation_seconds": 40.0, "pretraining_seconds": 140.0}


def test_the_table_the_picture_and_the_baselines_predictions_are_written(
    make_inputs: MakeInputs, context: StepContext
) -> None:
    document = run(make_inputs(), context)
    text = (context.output / "comparison.md").read_text(encoding="utf-8")
    assert document["verdict"] in text
    assert "| fine-tuning, pretrained | 90.0 % |" in text
    assert (context.output / "comparison.png").read_bytes().startswith(b"\x89PNG")
    table = pq.read_table(context.output / "predictions/tfidf.parquet")
    assert table.column_names == ["id", "label", "predicted"]
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())


def test_the_most_accurate_way_is_used_when_it_is_clearly_better(make_inputs: MakeInputs, context: StepContext) -> None:
    document = run(make_inputs(pretrained=0.995), context)
    assert document["use"] == document["best"] == "finetuning_pretrained"
    assert document["verdict"].startswith("Use fine-tuning, pretrained: 99.5 % (95 % interval")


def test_a_cheaper_way_that_is_not_worse_is_used(make_inputs: MakeInputs, context: StepContext) -> None:
    document = run(make_inputs(pretrained=0.9925, scratch=0.99), context)
    assert document["best"] == "finetuning_pretrained"
    assert document["use"] == "finetuning_scratch"
    assert (
        "1.5 times fewer FLOPs than fine-tuning, pretrained (99.2 %) to train and is not worse" in document["verdict"]
    )


def test_prompting_at_chance_is_said_to_be_so(make_inputs: MakeInputs, context: StepContext) -> None:
    notes = " ".join(run(make_inputs(base=0.25), context)["notes"])
    assert "Prompting, base is not better than always naming the majority class" in notes
    assert "guessing at random gives 25.0 %" in notes
    assert "Prompting, tuned is not better" not in notes


def test_prompting_worse_than_the_majority_is_said_to_be_so(make_inputs: MakeInputs, context: StepContext) -> None:
    notes = " ".join(run(make_inputs(base=0.05), context)["notes"])
    assert "Prompting, base is worse than always naming the majority class" in notes


def test_ways_judged_on_a_part_of_the_test_split_are_compared_on_that_part(
    make_inputs: MakeInputs, context: StepContext
) -> None:
    document = run(make_inputs(num_prompted=100), context)
    rows = {way["name"]: way["num_rows"] for way in document["ways"]}
    assert (rows["prompting_base"], rows["finetuning_pretrained"]) == (100, 400)
    assert any("judged on 100 of the 400 test texts" in note for note in document["notes"])


def test_without_a_tuned_decoder_the_other_ways_are_compared(make_inputs: MakeInputs, context: StepContext) -> None:
    inputs = make_inputs()
    del inputs["tune_decoder"]
    assert [way["name"] for way in run(inputs, context)["ways"]] == [n for n in NAMES if n != "prompting_tuned"]


def test_the_same_inputs_give_the_same_document(make_inputs: MakeInputs, context: StepContext) -> None:
    inputs = make_inputs()
    first = run(inputs, context)
    (context.work / "again").mkdir()
    again = dataclasses.replace(context, output=context.work / "again")
    assert run(inputs, again) == first


def test_predictions_of_another_task_are_refused(make_inputs: MakeInputs, context: StepContext) -> None:
    inputs = make_inputs()
    path = inputs["prompt"].path / "predictions/base_0shot.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "id", [["f" * 32] * len(table)]), path)
    with pytest.raises(DataError, match=r"prompting_base: .* they belong to another task"):
        run(inputs, context)
