"""Collects what prompts scored and writes results.json, predictions and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from components.prompting.demonstrations import Rows
from components.prompting.evaluation import Prompt, Validated, best, judge, majority
from components.prompting.worker import ScoredUnit

Metrics = dict[str, float | int | str | None]


@dataclass(kw_only=True, slots=True)
class Report:
    """Results of one `prompt` step; fill it, then write it."""

    labels: Sequence[str]
    phrases: Sequence[str]
    training: Rows
    test: Rows
    seed: int
    _validation: list[dict[str, Any]] = field(default_factory=list)
    _evaluations: list[dict[str, Any]] = field(default_factory=list)
    _variants: dict[str, list[Validated]] = field(default_factory=lambda: {"base": [], "tuned": []})

    def add_validation(self, prompt: Prompt, variants: Sequence[Validated], num_rows: int) -> None:
        """A prompt's accuracy on the validation rows, controls with wrong labels included."""
        for variant in variants:
            self._validation.append(
                {
                    "model": prompt.model,
                    "shots": prompt.shots,
                    "draw": prompt.draw,
                    "permuted_labels": prompt.permuted,
                    "calibrated": variant.log_prior_K is not None,
                    "accuracy": variant.accuracy,
                    "num_rows": num_rows,
                }
            )

    def add_test(self, prompt: Prompt, variants: Sequence[Validated], scored: ScoredUnit, output: Path) -> None:
        """Judges a finalist, raw and calibrated, on the test rows; writes its scores and predictions."""
        num_rows = len(self.test)
        (output / "scores").mkdir(exist_ok=True)
        (output / "predictions").mkdir(exist_ok=True)
        table = pa.table({"id": self.test.ids, "log_likelihoods": scored.scores_NK.tolist()})
        pq.write_table(table, output / "scores" / f"{prompt.model}_{prompt.shots}shot.parquet")
        counts = {name: int(value) for name, value in scored.counts.items() if name != "inference_flops"}
        for variant in variants:
            judged = judge(variant.apply(scored.scores_NK), self.test, self.labels, self.seed)
            path = f"predictions/{variant.name}.parquet"
            columns = {"id": self.test.ids, "label": self.test.labels, "predicted": judged.predictions}
            pq.write_table(pa.table(columns), output / path)
            self._variants[prompt.model].append(variant)
            prior = variant.log_prior_K
            self._evaluations.append(
                {
                    "name": variant.name,
                    "model": prompt.model,
                    "shots": prompt.shots,
                    "calibrated": prior is not None,
                    "draw": prompt.draw,
                    "validation_accuracy": variant.accuracy,
                    **judged.scores.as_metrics(),
                    "num_rows": num_rows,
                    "num_correct": judged.scores.num_correct,
                    "prediction_histogram": judged.histogram,
                    "num_ties": judged.num_ties,
                    **counts,
                    "num_prefix_tokens": max(scored.prefix_lengths.values(), default=0),
                    "inference_flops_per_example": scored.counts["inference_flops"] / num_rows,
                    "demonstrations": [demo.id for demo in prompt.spec.demonstrations],
                    "prompt": prompt.spec.template.registered_form(prompt.spec.demonstrations),
                    "label_prior": None
                    if prior is None
                    else dict(zip(self.labels, np.exp(prior).tolist(), strict=True)),
                    "predictions": path,
                }
            )

    def write(self, output: Path) -> Metrics:
        """Writes results.json; returns the step's metrics."""
        by_name = {evaluation["name"]: evaluation for evaluation in self._evaluations}
        chosen = {model: best(variants).name for model, variants in self._variants.items() if variants}
        majority_label, majority_accuracy = majority(self.training, self.test)
        chance = 1 / len(self.labels)
        results = {
            "evaluations": self._evaluations,
            "chosen": chosen,
            "labels": dict(zip(self.labels, self.phrases, strict=True)),
            "chance_accuracy": chance,
            "majority": {"label": majority_label, "accuracy": majority_accuracy},
            "validation": self._validation,
        }
        text = json.dumps(results, ensure_ascii=False, indent=1, allow_nan=False)
        (output / "results.json").write_text(text + "\n", encoding="utf-8")
        metrics: Metrics = {
            "chance_accuracy": chance,
            "majority_accuracy": majority_accuracy,
            "num_test_rows": len(self.test),
        }
        for prefix, model in (("base_test_", "base"), ("test_", "tuned" if "tuned" in chosen else "base")):
            metrics |= _quality(by_name[chosen[model]], prefix)
        for name, evaluation in by_name.items():
            metrics[f"{name}_test_accuracy"] = evaluation["accuracy"]
            metrics[f"{name}_test_macro_f1"] = evaluation["macro_f1"]
        for control in self._validation:
            if control["permuted_labels"] and not control["calibrated"]:
                metrics[f"base_{control['shots']}shot_permuted_validation_accuracy"] = control["accuracy"]
        return metrics


def _quality(evaluation: dict[str, Any], prefix: str) -> Metrics:
    names = [f"{name}{suffix}" for name in ("accuracy", "macro_f1") for suffix in ("", "_low", "_high")]
    return {f"{prefix}{name}": evaluation[name] for name in names}
