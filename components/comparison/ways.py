"""The ways to classify that are compared: what each predicted on the test split, and what it cost.

A way that was judged on a part of the test split only is compared with another on the rows that both have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from components.finetuning.metrics import IntArray, Interval, Scores, encode, paired_difference, score
from infra.errors import DataError
from infra.journal.step import Artifact

Family = Literal["baseline", "prompting", "finetuning"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """One way to classify."""

    name: str
    title: str
    family: Family
    scores: Scores
    predicted: Mapping[str, int]
    """Predicted class by id of the test row."""
    adaptation_flops: float
    """Of training for the task itself."""
    pretraining_flops: float
    """Of the language model it starts from; paid once for any number of tasks."""
    detail: str
    inference_flops_per_example: float | None = None
    adaptation_seconds: float | None = None
    pretraining_seconds: float | None = None

    @property
    def train_flops(self) -> float:
        """Adaptation and pretraining."""
        return self.adaptation_flops + self.pretraining_flops


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedSplit:
    """What every way is judged on."""

    ids: Sequence[str]
    label: Mapping[str, int]
    labels: Sequence[str]
    seed: int

    def way(self, predicted: Mapping[str, str], **about: Any) -> Way:
        """A way with its scores.

        Raises:
            DataError: a prediction is for a row that is not in the test split, or names no label of the task.
        """
        ids = [row_id for row_id in self.ids if row_id in predicted]
        unknown = [value for value in predicted.values() if value not in self.labels]
        if len(ids) != len(predicted) or not ids or unknown:
            raise DataError(
                f"{about['name']}: {len(predicted)} predictions, {len(ids)} of them for rows of the test split, "
                f"{len(unknown)} with labels that the task lacks; they belong to another task"
            )
        predicted_N = encode([predicted[row_id] for row_id in ids], self.labels)
        label_N = np.array([self.label[row_id] for row_id in ids], dtype=np.int64)
        return Way(
            scores=score(label_N, predicted_N, len(self.labels), seed=self.seed),
            predicted=dict(zip(ids, predicted_N.tolist(), strict=True)),
            **about,
        )

    def difference(self, first: Way, second: Way) -> Interval:
        """Accuracy of `first` less that of `second` on the rows both were judged on, with a paired interval."""
        shared = [row_id for row_id in self.ids if row_id in first.predicted and row_id in second.predicted]

        def column(values: Mapping[str, int]) -> IntArray:
            return np.array([values[row_id] for row_id in shared], dtype=np.int64)

        return paired_difference(column(self.label), column(first.predicted), column(second.predicted), seed=self.seed)


def finetuned_ways(test: JudgedSplit, finetune: Artifact, encoder: Artifact) -> list[Way]:
    """Fine-tuning from scratch (where it was done) and from pretrained weights, at the largest label budget."""
    results = json.loads((finetune.path / "results.json").read_text(encoding="utf-8"))
    runs = {run["name"]: run for run in results["runs"]}
    champion = runs[results["champion"]]
    scratch = runs.get(results["scratch_champion"])
    ways = []
    for run in [scratch, champion] if scratch else [champion]:
        pretrained = run["init"] == "pretrained"
        ways.append(
            test.way(
                read_predictions(finetune.path / run["predictions"]),
                name="finetuning_pretrained" if pretrained else "finetuning_scratch",
                title="fine-tuning, pretrained" if pretrained else "fine-tuning, from scratch",
                family="finetuning",
                adaptation_flops=run["train_flops"],
                pretraining_flops=number(encoder.metrics, "train_flops") if pretrained else 0.0,
                inference_flops_per_example=results["inference_flops_per_example"],
                detail=f"{run['num_labels']:,} labels, {run['steps']:,} steps",
                adaptation_seconds=measured(finetune, "champion_fit_seconds" if pretrained else "scratch_fit_seconds"),
                pretraining_seconds=measured(encoder, "seconds") if pretrained else 0.0,
            )
        )
    return ways


def prompted_ways(test: JudgedSplit, prompt: Artifact, decoder: Artifact, tuned: Artifact | None) -> list[Way]:
    """Prompting the decoder as pretrained, and as tuned on rendered prompts: for each the prompt it chose."""
    results = json.loads((prompt.path / "results.json").read_text(encoding="utf-8"))
    by_name = {evaluation["name"]: evaluation for evaluation in results["evaluations"]}
    ways = []
    for model in ("base", "tuned"):
        if model not in results["chosen"] or (model == "tuned" and tuned is None):
            continue
        chosen = by_name[results["chosen"][model]]
        tuning = tuned if model == "tuned" else None
        ways.append(
            test.way(
                read_predictions(prompt.path / chosen["predictions"]),
                name=f"prompting_{model}",
                title=f"prompting, {model}",
                family="prompting",
                adaptation_flops=number(tuning.metrics, "train_flops") if tuning else 0.0,
                pretraining_flops=number(decoder.metrics, "train_flops"),
                inference_flops_per_example=chosen.get("inference_flops_per_example"),
                detail=f"{chosen['shots']} shots{', calibrated' if chosen['calibrated'] else ''}",
                adaptation_seconds=measured(tuning, "seconds") if tuning else 0.0,
                pretraining_seconds=measured(decoder, "seconds"),
            )
        )
    return ways


def read_predictions(path: Path) -> dict[str, str]:
    """Predicted label by id."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["id", "predicted"])
    return dict(zip(table.column("id").to_pylist(), table.column("predicted").to_pylist(), strict=True))


def number(values: Mapping[str, Any], name: str) -> float:
    """A number among metrics; 0 where it was not counted."""
    value = values.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def measured(artifact: Artifact, name: str) -> float | None:
    """A measurement of the step that made `artifact`, if it was taken."""
    value = artifact.measured.get(name)
    return float(value) if isinstance(value, int | float) else None
