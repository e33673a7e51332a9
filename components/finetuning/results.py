"""What a finished sweep says: runs, gains of pretraining, trials, the champion's card. Plain functions of unit results.

The test split is judged once a final fit and never used to choose; every choice is by validation.

Shapes: N test rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from components.finetuning.config import FinetuneConfig
from components.finetuning.data import EncodedSplit, IntArray
from components.finetuning.metrics import Interval, class_scores, confusion_matrix, paired_mean_difference, score
from components.finetuning.sweep import Init, Sweep, Unit, best, chosen_trial, final_unit, rung_unit
from components.finetuning.units import UnitResult


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalRun:
    """One final fit: its unit, what it found, and its predictions."""

    unit: Unit
    result: UnitResult
    predicted_N: IntArray
    num_rows: int

    @property
    def predictions_path(self) -> str:
        """Of its predictions, relative to the artifact."""
        return f"predictions/{self.unit.name}.parquet"


def final_units(sweep: Sweep, metrics: Mapping[str, float]) -> list[Unit]:
    """The final fits of a finished sweep."""
    winner = chosen_trial(sweep, metrics)
    return [final_unit(sweep, winner, index) for index in range(sweep.num_seeds)] if winner is not None else []


def choose_champion(runs: Sequence[FinalRun], sweep: Sweep, metric: str) -> FinalRun:
    """The run of `sweep` with the best validation metric; the first among equals."""
    own = [run for run in runs if (run.unit.init, run.unit.budget) == (sweep.init, sweep.budget)]
    (index,) = best({place: run.result.metrics[metric] for place, run in enumerate(own)}, 1)
    return own[index]


def describe_run(run: FinalRun, test: EncodedSplit, labels: Sequence[str], seed: int) -> dict[str, Any]:
    """A row of `runs` in results.json."""
    scores = score(test.label_N, run.predicted_N, len(labels), seed=seed)
    return {
        "name": run.unit.name,
        "init": run.unit.init,
        "budget": run.unit.budget,
        "seed": run.unit.seed_index,
        "trial": run.unit.trial,
        "hyperparameters": run.unit.hyperparameters.as_dict(),
        "num_labels": run.num_rows,
        "steps": run.result.step,
        "num_tokens": run.result.num_tokens,
        "num_examples": run.result.num_texts,
        "train_flops": run.result.train_flops,
        "validation_accuracy": run.result.metrics["validation_accuracy"],
        "validation_macro_f1": run.result.metrics["validation_macro_f1"],
        "num_test_rows": scores.num_rows,
        "num_correct": scores.num_correct,
        **scores.as_metrics(),
        "predictions": run.predictions_path,
    }


def pretraining_gain(runs: Sequence[FinalRun], budget: int | str, test: EncodedSplit, seed: int) -> Interval | None:
    """Mean test accuracy from pretrained less that from random weights, seed by seed; None without the latter."""

    def predictions(init: Init) -> list[IntArray]:
        return [run.predicted_N for run in runs if (run.unit.init, run.unit.budget) == (init, budget)]

    pretrained, scratch = predictions("pretrained"), predictions("scratch")
    return paired_mean_difference(test.label_N, pretrained, scratch, seed=seed) if scratch else None


def describe_sweep(sweep: Sweep, results: Mapping[str, UnitResult], metrics: Mapping[str, float]) -> dict[str, Any]:
    """An entry of trials.json: every trial with its metric at every rung it reached."""
    return {
        "init": sweep.init,
        "budget": sweep.budget,
        "num_labels": sweep.num_rows,
        "chosen": chosen_trial(sweep, metrics),
        "trials": [
            {
                "trial": trial,
                "hyperparameters": hyperparameters.as_dict(),
                "steps": sweep.trial_steps[trial],
                "rungs": [
                    {"rung": rung, "step": results[name].step, "diverged": results[name].diverged}
                    | dict(results[name].metrics)
                    for rung in range(sweep.num_rungs)
                    if (name := rung_unit(sweep, trial, rung).name) in results
                ],
                "train_flops": trial_flops(sweep, trial, results),
            }
            for trial, hyperparameters in enumerate(sweep.trials)
        ],
    }


def trial_flops(sweep: Sweep, trial: int, results: Mapping[str, UnitResult]) -> float:
    """Training FLOPs of a trial over all its rungs."""
    names = [rung_unit(sweep, trial, rung).name for rung in range(sweep.num_rungs)]
    return max((results[name].train_flops for name in names if name in results), default=0.0)


def describe_errors(run: FinalRun, test: EncodedSplit, labels: Sequence[str]) -> dict[str, Any]:
    """Precision, recall and F1 of every class, and the confusion matrix (rows are true labels)."""
    return {
        "classes": [asdict(entry) for entry in class_scores(test.label_N, run.predicted_N, labels)],
        "confusion_matrix": confusion_matrix(test.label_N, run.predicted_N, len(labels)).tolist(),
    }


def write_predictions(path: Path, ids: Sequence[str], labels: Sequence[str], test: EncodedSplit, run: FinalRun) -> None:
    """Columns id, label, predicted, ordered by id."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "id": list(ids),
        "label": [labels[index] for index in test.label_N],
        "predicted": [labels[index] for index in run.predicted_N],
    }
    pq.write_table(pa.table(columns).sort_by("id"), path)


CARD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [text-classification, fromzero]
---
# {name}

A classifier with {num_classes} classes, fine-tuned on {num_labels:,} labelled texts from an encoder that was
pretrained from random weights with masked-language modelling on the user's own text. Made by fromzero.

| test | value | 95 % interval |
|---|---|---|
| accuracy | {accuracy:.4f} | {accuracy_low:.4f} to {accuracy_high:.4f} |
| macro-F1 | {macro_f1:.4f} | {macro_f1_low:.4f} to {macro_f1_high:.4f} |

{num_correct:,} of {num_test_rows:,} test texts are right. The test texts were judged once, after all choices;
intervals are percentile bootstraps over test texts. Texts are cut on the right to {max_length} tokens, special tokens
included.

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForSequenceClassification.from_pretrained(folder)
batch = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
label = model.config.id2label[int(model(**batch).logits[0].argmax())]
```

## Training

{hyperparameters}; {steps:,} steps, {num_tokens:,} tokens, {train_flops:.3g} FLOPs; chosen by {selection} on validation
from {num_trials} trials. AdamW, linear warmup and decay, {precision} training, fp32 evaluation.

## Lineage

Key of the pretrained encoder: `{encoder_key}`. Key of the labelled task: `{task_key}`.

## Licence and limits

Licences of what it was trained on: {data_license}.

It knows only its classes, and gives one for any text, also for one of another kind or language. Classes:
{classes}.
"""


def model_card(
    config: FinetuneConfig, run: Mapping[str, Any], labels: Sequence[str], keys: Mapping[str, str], max_length: int
) -> str:
    """README.md of the champion.

    Args:
        config: the step's config.
        run: its row of results.json.
        labels: the classes.
        keys: keys of the step's inputs by name.
        max_length: tokens a text is cut to.
    """
    settings = ", ".join(f"{name} {value}" for name, value in run["hyperparameters"].items())
    return CARD.format(
        **{name: value for name, value in run.items() if name not in ("name", "hyperparameters")},
        name=config.registered_model,
        hyperparameters=settings,
        num_classes=len(labels),
        classes=", ".join(f"`{label}`" for label in labels),
        selection=config.selection_metric,
        num_trials=config.num_trials,
        precision=config.precision,
        encoder_key=keys["pretrain_mlm"],
        task_key=keys["task"],
        max_length=max_length,
        data_license=config.data_license or "not stated; ask whoever made this model",
    )
